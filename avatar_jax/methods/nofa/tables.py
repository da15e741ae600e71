"""Tables 3, 4 and 5 of the paper for ``avatar-jax ablate``: which variants are trained, and how avatars are built."""

from __future__ import annotations

from pathlib import Path

from avatar_jax.methods.base import Row, Table

TABLE_3 = {
    'without compensation': Row('without_compensation', 'forward', {'csim': 0.6024}),
    'with compensation': Row('full', 'forward', {'csim': 0.7219}),
    'compensation tuned': Row('full', 'compensation', {'csim': 0.7981}),
    'generator tuned': Row('full', 'generator', {'csim': 0.8031}),
}
TABLE_4 = {
    'without teeth refinement': Row('general', 'forward'),
    'with teeth refinement': Row('teeth', 'forward'),
}
TABLE_5 = {
    'full': Row('general', 'forward', {'aed': 0.1091, 'csim': 0.8031}),
    'without weighting network': Row('without_wnet', 'forward', {'aed': 0.1143}),
    'without identity': Row('without_identity', 'forward', {'csim': 0.7210}),
}
BUILDS = {'forward': {'tune': 'none'}, 'compensation': {'tune': 'compensation'}, 'generator': {'tune': 'generator'}}
STAGES_OF = {'full': ('general', 'compensation'), 'teeth': ('general', 'teeth')}  # the others have the first alone
ABLATED = ('without_compensation', 'without_wnet', 'without_identity')


def run(variant: str, size: str, seed: int, steps: int | None, pictures: str | Path) -> list[tuple[str, list[str]]]:
    """The configurations that a variant is trained with, stage after stage, and their overrides.

    Args:
        steps: of every stage.
    """
    runs = []
    for stage in STAGES_OF.get(variant, ('general',)):
        names = ['small'] if size == 'tiny' else []
        names += [stage] if stage != 'general' else []
        names += [variant] if variant in ABLATED else []
        overrides = [f'--config.seed={seed}', '--config.output.sample_people=0', f'--config.data.folder={pictures}']
        if steps is not None:
            overrides.append(f'--config.model.settings.train.{stage}.iterations={steps}')
        if stage == 'teeth':
            overrides.append('--config.model.settings.train.teacher=truth')
        runs.append(('nofa_heads' + (f':{",".join(names)}' if names else ''), overrides))
    return runs


NOTE = (
    'whole picture (PSNR), its mouth (MOUTH, PSNR), identity (CSIM to the true picture) and expression distance (AED), '
    'the latter two by stand-in networks that know procedural heads'
)


def _table(number: int, rows: dict[str, Row], claims: tuple[tuple[str, str], ...], note: str = '') -> Table:
    return Table(
        title=f'NOFA, Table {number}',
        rows=rows,
        claims=claims,
        scores={'psnr': True, 'mouth': True, 'csim': True, 'aed': False},
        run=run,
        protocol='portraits',
        builds=BUILDS,
        note=NOTE + note,
    )


TABLES = {
    'nofa3': _table(
        3,
        TABLE_3,
        (
            ('with compensation', 'without compensation'),
            ('compensation tuned', 'with compensation'),
            ('generator tuned', 'with compensation'),
            ('generator tuned', 'compensation tuned'),
        ),
    ),
    'nofa4': _table(
        4,
        TABLE_4,
        (('with teeth refinement', 'without teeth refinement'),),
        '; the teacher is the true picture, and the paper scores mouth crops by FID, LPIPS and SSIM',
    ),
    'nofa5': _table(5, TABLE_5, (('full', 'without weighting network'), ('full', 'without identity'))),
}
