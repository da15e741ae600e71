"""A command as a JobSet on Google Kubernetes Engine: its manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence

from launch.cluster.command import PREEMPTED_STATUS, resuming


def jobset(
    command: Sequence[str],
    *,
    name: str,
    accelerator: str,
    topology: str,
    hosts: int,
    chips_per_host: int,
    image: str,
    restarts: int,
) -> str:
    """The manifest for GKE, as JSON (which ``kubectl`` takes like YAML)."""
    container = {
        'name': 'train',
        'image': image,
        'command': ['avatar-jax', *resuming(command), '--coordinator', 'auto'],
        'ports': [{'containerPort': 8471}, {'containerPort': 8080}],  # between the machines of a slice
        'resources': {'limits': {'google.com/tpu': chips_per_host}},
    }
    pod = {
        'nodeSelector': {
            'cloud.google.com/gke-tpu-accelerator': accelerator,
            'cloud.google.com/gke-tpu-topology': topology,
        },
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': 120,  # for the step that runs, and its checkpoint
        'containers': [container],
    }
    job = {
        'parallelism': hosts,
        'completions': hosts,
        'backoffLimit': 0,
        # A preempted pod fails the job at once, and the JobSet starts all pods again.
        'podFailurePolicy': {
            'rules': [{'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': [PREEMPTED_STATUS]}}]
        },
        'template': {'spec': pod},
    }
    manifest = {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': name,
            'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
        },
        'spec': {
            'failurePolicy': {'maxRestarts': restarts},
            'replicatedJobs': [{'name': 'slice', 'replicas': 1, 'template': {'spec': job}}],
        },
    }
    return json.dumps(manifest, indent=2) + '\n'
