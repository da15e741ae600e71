"""From per-identity scores to a summary with confidence intervals, as JSON values and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from avatar_jax.eval.statistics import Summary, bootstrap


class Term(NamedTuple):
    """How a score is printed."""

    label: str
    better: str  # 'higher', 'lower' or '' (neither)
    digits: int = 3


TERMS: dict[str, Term] = {
    'psnr_head': Term('PSNR in the head mask, dB', 'higher', 2),
    'psnr': Term('PSNR of the whole picture, dB', 'higher', 2),
    'ssim': Term('SSIM (11 x 11 Gaussian)', 'higher'),
    'ssim_head': Term('SSIM in the head mask', 'higher'),
    'l1': Term('L1', 'lower', 4),
    'lpips': Term('LPIPS (alex)', 'lower'),
    'lpips_vgg': Term('LPIPS (vgg)', 'lower'),
    'lpips_squeeze': Term('LPIPS (squeeze)', 'lower'),
    'psnr_mouth_eyes': Term('PSNR of mouth and eyes, dB', 'higher', 2),
    'l1_mouth_eyes': Term('L1 of mouth and eyes', 'lower', 4),
    'psnr_mouth': Term('PSNR of the mouth, dB', 'higher', 2),
    'l1_mouth': Term('L1 of the mouth', 'lower', 4),
    'psnr_eyes': Term('PSNR of the eyes, dB', 'higher', 2),
    'l1_eyes': Term('L1 of the eyes', 'lower', 4),
    'aed': Term('AED (mean of 64)', 'lower', 4),
    'aed_l2': Term('AED (norm of 64)', 'lower'),
    'apd': Term('APD (mean of 3 angles, rad)', 'lower', 4),
    'apd_trans_l2': Term('APD (norm of angles and translation)', 'lower', 4),
    'akd': Term('AKD (L1, pixels)', 'lower'),
    'akd_l2': Term('AKD (Euclidean, pixels)', 'lower'),
    'prmse': Term('PRMSE, degrees', 'lower', 2),
    'aucon': Term('AUCON (share of equal action units)', 'higher'),
    'avd': Term('AVD to the portrait, dm', 'lower', 4),
    'avd_floor': Term('... of the true picture (noise of the estimator)', '', 4),
    'csim': Term('CSIM', 'higher'),
    'lse_d': Term('LSE-D', 'lower'),
    'lse_c': Term('LSE-C (sync confidence)', 'higher'),
    'sync_offset': Term('offset of the sound, frames', '', 1),
    'csim_source': Term('identity similarity to the portrait', 'higher'),
    'csim_truth': Term('identity similarity to the true picture', 'higher'),
    'csim_ceiling': Term('... of the true picture to the portrait', ''),
    'psnr_mouth_eyes_over_frozen': Term('mouth and eyes over the kept expression, dB', 'higher', 2),
    'psnr_mouth_over_frozen': Term('mouth over the kept expression, dB', 'higher', 2),
    'psnr_eyes_over_frozen': Term('eyes over the kept expression, dB', 'higher', 2),
    'psnr_mouth_eyes_over_frozen_truth': Term(
        'mouth and eyes over perfect pictures of the kept expression, dB', 'higher', 2
    ),
    'psnr_mouth_over_frozen_truth': Term('mouth over perfect pictures of the kept expression, dB', 'higher', 2),
    'psnr_eyes_over_frozen_truth': Term('eyes over perfect pictures of the kept expression, dB', 'higher', 2),
    'mouth_correlation': Term('mouth opening, correlation with the true picture', 'higher'),
    'mouth_correlation_geometry': Term('mouth opening, correlation with the driver', 'higher'),
    'mouth_correlation_ceiling': Term('... which the true picture reaches', ''),
    'eye_correlation': Term('eye opening, correlation with the true picture', 'higher'),
    'eye_correlation_geometry': Term('eye opening, correlation with the driver', 'higher'),
    'eye_correlation_ceiling': Term('... which the true picture reaches', ''),
    'eye_opening_shut': Term("eye opening where the driver's eyes are shut (0 shut, 1 open)", 'lower'),
    'eye_opening_open': Term("eye opening where the driver's eyes are open", 'higher'),
    'psnr_head_over_mean_frame': Term('PSNR in the head mask over the mean frame, dB', 'higher', 2),
    'psnr_head_over_one_frame': Term('PSNR in the head mask over one frame alone, dB', 'higher', 2),
    'psnr_over_mean_frame': Term('PSNR over the mean frame, dB', 'higher', 2),
    'psnr_over_one_frame': Term('PSNR over one frame alone, dB', 'higher', 2),
    'change': Term('change from frame to frame (L1 in the head)', '', 4),
    'change_truth': Term('... of the true pictures', '', 4),
    'trembling': Term('trembling: change of the change', '', 4),
    'trembling_truth': Term('... of the true pictures', '', 4),
    'steps': Term('steps saved until the loss that the mean code comes to', 'higher', 1),
    'seconds': Term('seconds saved, with those of the encoder, without compilation', 'higher', 2),
    'reached': Term('share of people of whom the encoder came to that loss', 'higher', 2),
    'steps_usual': Term('steps from the mean code', '', 1),
    'steps_better': Term('steps from the encoder', '', 1),
    'seconds_usual': Term('seconds from the mean code', '', 2),
    'seconds_better': Term('seconds from the encoder', '', 2),
    'loss_first_usual': Term('first loss, from the mean code', '', 4),
    'loss_first_better': Term('first loss, from the encoder', '', 4),
    'loss_last_usual': Term('lowest loss, from the mean code', '', 4),
    'loss_last_better': Term('lowest loss, from the encoder', '', 4),
    'eyes_closed_share': Term("share of the driver's closed frames in which the eyes close", 'higher'),
}
GROUPS = {
    'source': 'Reconstruction: the view of the portrait',
    'views': 'Unseen views of the same expression',
    'picture': 'Unseen frames of the same video, driven by their pictures',
    'coefficients': 'Unseen frames, driven by their coefficients',
    'sound': 'Unseen frames, driven by their sound',
    'driven_last': 'Unseen frames of the same video',
    'mean_frame': 'Baseline: the mean of the training frames',
    'one_frame': 'Baseline: the best training frame alone, driven by coefficients (the default method)',
    'gain_picture': 'What pictures gain over the baselines',
    'gain_coefficients': 'What coefficients gain over the baselines',
    'gain_sound': 'What sound gains over the baselines',
    'driven': 'Driven frames against the true pictures',
    'frozen': 'Baseline: the same avatar keeps the source expression',
    'frozen_truth': 'Baseline: perfect pictures that keep the source expression',
    'gain': 'What driving gains',
    'control': 'How the face follows the driver',
    'steady': 'Frames that follow one another (--steady)',
    'cross': 'Driven by another person: identity with the portrait, expression and pose with the driver',
    'saving': 'What the start from the encoder saves (--against-mean)',
    'measured': 'Measured by other programs (--measured)',
}
# Which network a score looks through, where the report says how good that is.
THROUGH = {
    **dict.fromkeys(('aed', 'aed_l2', 'apd', 'apd_trans_l2', 'prmse'), 'coefficients'),
    **dict.fromkeys(('akd', 'akd_l2', 'avd', 'avd_floor'), 'landmarks'),
    **dict.fromkeys(('csim_source', 'csim_truth', 'csim_ceiling'), 'identity'),
    'aucon': 'units',
}
# Its file says that the stand-in's expressions hardly correlate with the true ones (0.09).
WEAK = ('aed', 'aed_l2', 'aucon')
COLUMNS = (  # of the table of identities
    ('source.psnr_head', 'source'),
    ('views.psnr_head', 'views'),
    ('driven.psnr_head', 'driven'),
    ('driven.psnr_mouth_eyes', 'm+e'),
    ('gain.psnr_mouth_eyes_over_frozen', 'gain'),
    ('control.mouth_correlation', 'mouth r'),
    ('control.eye_correlation', 'eye r'),
    ('driven.csim_source', 'csim'),
    ('picture.psnr_head', 'picture'),
    ('coefficients.psnr_head', 'coeff.'),
    ('sound.psnr_head', 'sound'),
    ('sound.mouth_correlation', 'mouth r'),
    ('mean_frame.psnr_head', 'mean'),
    ('one_frame.psnr_head', 'one'),
)


def summarise(scores: Sequence[Mapping[str, float]], seed: int = 0, level: float = 0.95) -> dict[str, Summary]:
    """Mean and bootstrap interval over identities of every score that occurs."""
    names: dict[str, None] = {}
    for item in scores:
        names.update(dict.fromkeys(item))
    missing = float('nan')
    # JSON has no NaN: scores read back from a file may be None.
    columns = {n: [missing if s.get(n) is None else s[n] for s in scores] for n in names}
    return {name: bootstrap(values, seed, level=level) for name, values in columns.items()}


def term(name: str) -> Term:
    """How the score of this dotted name is printed; unknown scores appear under their own name."""
    return TERMS.get(name.partition('.')[2], Term(name, ''))


def render(report: Mapping[str, Any]) -> str:
    """The report (the JSON values that ``launch.evaluate`` writes) as text."""
    lines = [report['title'], '=' * len(report['title']), '']
    lines += [f'{key}: {value}' for key, value in report['about'].items()] + ['']
    summary = {k: Summary(**v) for k, v in report['mean'].items()}
    for group, title in GROUPS.items():
        rows = [(k, v) for k, v in summary.items() if k.startswith(group + '.') and v.count]
        if not rows:
            continue
        order = {name: i for i, name in enumerate(TERMS)}
        rows.sort(key=lambda row: order.get(row[0].partition('.')[2], len(order)))
        lines += [title, '-' * len(title)]
        for name, value in rows:
            t = term(name)
            arrow = {'higher': '+', 'lower': '-', '': ' '}[t.better]
            low, high = f'{value.low:.{t.digits}f}', f'{value.high:.{t.digits}f}'
            label = t.label + _caveat(name, report['networks'])
            lines.append(f'  {arrow} {label:<70} {value.mean:>9.{t.digits}f}   [{low}, {high}]  n={value.count}')
        lines.append('')
    lines += _fid(report.get('fid'))
    lines += ['+ higher is better, - lower is better; brackets: 95 % bootstrap interval over identities', '']
    lines += _identities(report)
    title = 'Networks that the scores look through'
    lines += [title, '-' * len(title)]
    lines += [f'  {name:<13} {text}' for name, text in report['networks'].items()]
    if report['unavailable']:
        lines += ['', 'Not available']
        for reason, names in _by_reason(report['unavailable']).items():
            lines.append(f'  {", ".join(names)}: {reason}')
    if report['failed']:
        lines += ['', 'Failed']
        lines += [f'  {item["name"]}: {item["error"]}' for item in report['failed']]
    return '\n'.join(lines) + '\n'


def _caveat(name: str, networks: Mapping[str, str]) -> str:
    """What a reader must know of the network behind a score."""
    group, _, score = name.partition('.')
    if group == 'measured' or not networks.get(THROUGH.get(score, ''), '').startswith('stand-in'):
        return ''
    return ', by a stand-in too weak to rank by' if score in WEAK else ', by a stand-in'


def _fid(found: Mapping[str, Any] | None) -> list[str]:
    """The FID with what it is worth."""
    if not found:
        return []
    title, count = 'FID of the driven frames to true ones', min(found['made'], found['real'])
    worth = '' if count >= 2048 else '; fewer than 2048: biased, compare it only with equal numbers of the same people'
    return [
        title,
        '-' * len(title),
        f'  - {found["fid"]:.1f} ({found["made"]} and {found["real"]} pictures{worth})',
        '',
    ]


def _identities(report: Mapping[str, Any]) -> list[str]:
    items = report['identities']
    columns = [(k, t) for k, t in COLUMNS if any(item['scores'].get(k) is not None for item in items)]
    if not items or not columns:
        return []
    width = max(len(item['name']) for item in items)
    lines = [' ' * (width + 2) + ''.join(f'{title:>9}' for _, title in columns)]
    for item in items:
        cells = []
        for key, _ in columns:
            value = item['scores'].get(key)
            cells.append(f'{"-":>9}' if value is None else f'{value:>9.{term(key).digits}f}')
        lines.append(f'  {item["name"]:<{width}}' + ''.join(cells))
    return [*lines, '']


def _by_reason(unavailable: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, reason in unavailable.items():
        short = name.partition('.')[2]
        if short not in grouped.setdefault(reason, []):
            grouped[reason].append(short)
    return grouped
