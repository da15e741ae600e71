"""Windows of DeepSpeech logits against reference numbers."""

import numpy as np

from avatar_jax.sound.windows import ROW_RATE, interpolate_rows, windows_at, windows_of_rows
from tests.comparison import close
from tests.parity.golden import handles


@handles('hfagp', 'audio_windows')
def test_sound_windows(golden):
    rows = interpolate_rows(golden.inp['logits'], golden.config['n50'])
    close(rows, golden.out['resampled'], scale=1e-6, what='rows')
    windows = windows_of_rows(golden.out['resampled'])
    np.testing.assert_array_equal(windows, golden.out['windows'])
    times = np.arange(len(windows)) / 25
    np.testing.assert_array_equal(windows_at(golden.out['resampled'], times), golden.out['windows'])
    golden.check_all_used()


@handles('blocks', 'deepspeech_windows')
def test_deepspeech_windows(golden):
    logits, c = golden.inp['logits'], golden.config
    rows = interpolate_rows(logits, c['n50'])
    close(rows, golden.out['interp50'], scale=1e-6, what='rows')
    np.testing.assert_array_equal(windows_of_rows(golden.out['interp50']), golden.out['windows25'])
    dropped = windows_of_rows(golden.out['interp50'], drop_last=True)
    np.testing.assert_array_equal(dropped, golden.out['windows25_dropped'])
    video = interpolate_rows(logits, c['n_video'], new_rate=c['n_video'] / (len(logits) / ROW_RATE))
    close(video, golden.out['interp_video'], scale=1e-6, what='rows of the video')
    golden.check_all_used()
