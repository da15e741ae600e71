"""Where an output file came from: one record, written into PNG, MP4 and JSON files alike.

PNG: the record as JSON in an iTXt chunk ``avatar_jax``, ``Software`` and ``Comment`` in plain text, and an XMP packet
with the IPTC digital source type of generated media. MP4: the metadata entries ``avatar_jax`` and ``comment``. JSON:
the key ``provenance``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import avatar_jax

KEY = 'avatar_jax'
# The IPTC vocabulary by which picture services recognise generated media.
_SOURCE_TYPE = 'http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia'

_PROCEDURAL = ('rendered', 'heads', 'fast_heads')  # sources of data whose people are drawn


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What produced a file.

    Attributes:
        synthetic: True when the pixels were generated (by a network or a renderer), not taken by a camera.
        weights: SHA-256 of the network weights, or empty when no network was used.
        seed: seed of the run, if it had one.
        command: the command or function that wrote the file.
        sources: SHA-256 of the input files, by name.
        tool: name of this software.
        version: its version.
    """

    synthetic: bool
    weights: str = ''
    seed: int | None = None
    command: str = ''
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tool: str = 'avatar_jax'
    version: str = avatar_jax.__version__

    def as_dict(self) -> dict[str, Any]:
        """The record as plain values, as JSON reports hold it under ``provenance``."""
        return {**dataclasses.asdict(self), 'sources': dict(self.sources)}

    def json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(self.as_dict(), sort_keys=True)

    def sentence(self) -> str:
        """The record for people."""
        kind = 'Synthetic picture, generated' if self.synthetic else 'Picture processed'
        parts = [f'{kind} by {self.tool} {self.version}']
        if self.weights:
            parts.append(f'weights {self.weights[:12]}')
        if self.seed is not None:
            parts.append(f'seed {self.seed}')
        return ', '.join(parts)

    def png_text(self) -> dict[str, str]:
        """Text chunks of a PNG file, by keyword."""
        text = {KEY: self.json(), 'Software': f'{self.tool} {self.version}', 'Comment': self.sentence()}
        if self.synthetic:
            text['XML:com.adobe.xmp'] = (
                '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
                '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
                '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
                '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
                f'Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPE}"/>'
                '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
            )
        return text

    def video_metadata(self) -> dict[str, str]:
        """Metadata entries of an MP4 file."""
        return {KEY: self.json(), 'comment': self.sentence()}


def from_metadata(metadata: Mapping[str, Any]) -> Provenance | None:
    """The record in the metadata of a picture (``PIL.Image.info``), a video or a JSON report; None if there is none."""
    record = metadata.get(KEY, metadata.get('provenance'))
    if record is None:
        return None
    try:
        values = json.loads(record) if isinstance(record, str) else dict(record)
        known = {f.name for f in dataclasses.fields(Provenance)}
        return Provenance(**{k: v for k, v in values.items() if k in known})
    except (ValueError, TypeError):  # somebody else's entry under the same key
        return None


def of_procedural_heads(provenance: Mapping[str, Any] | None) -> bool:
    """Whether weights say that they were trained on procedural heads, which no photograph shows."""
    data = (provenance or {}).get('data', '')
    source = data.get('source', '') if isinstance(data, Mapping) else str(data).partition(',')[0]
    return source in _PROCEDURAL
