# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From one portrait to an animation, in pure functions
#
# Everything in `avatar_jax` is a pure function of arrays: networks are trees of weights, an avatar is a tree of
# codes, and `jit`, `vmap` and `grad` apply as usual. This notebook takes one picture of a head that the shipped
# weights have never seen, finds its identity code, and drives it with another person's motion. The heads are made by
# the project, so the true picture is known everywhere. It runs offline on a CPU in a few minutes.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import avatar_jax as aj
from data_pipelines.cameras import pose_labels
from data_pipelines.clips import evaluation_clips

STEPS = int(os.environ.get('AVATAR_NOTEBOOK_STEPS', 60))  # per inversion stage


def show(*rows, titles=()):
    """Rows of pictures [H, W, 3] in [-1, 1]."""
    columns = max(map(len, rows))
    _, axes = plt.subplots(len(rows), columns, figsize=(1.7 * columns, 1.8 * len(rows)), squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            axes[r, c].imshow(np.clip(np.asarray(picture) / 2 + 0.5, 0, 1))
        if r < len(titles):
            axes[r, 0].set_title(titles[r], fontsize=9, loc='left')
    plt.tight_layout()
    plt.show()


# %% [markdown]
# ## The model
#
# One weight file holds both networks: EG3D's tri-plane generator and OTAvatar's motion controller. `model.variables` is
# a nested dict of arrays, `model.config` a frozen dataclass, `model.method` says how the two are used.

# %%
model = aj.load_model('heads128')
config, variables = model.config, model.variables
for name, part in variables['params'].items():
    print(f'{name}: {sum(x.size for x in jax.tree.leaves(part)):,} parameters')
print(f'code: {config.generator.num_ws} rows of {config.generator.w_dim}')

# %% [markdown]
# A normal `z` becomes a head: the mapping network makes a code `w`, the backbone makes three feature planes, the
# renderer looks at them from a camera.

# %%
generator = {name: part['generator'] for name, part in variables.items() if 'generator' in part}
eg3d = aj.TriPlaneGenerator(config.generator)
person, driver = evaluation_clips(2, seed=3, split='test', num_frames=60)
front = jnp.asarray(person.labels()[:1])


@jax.jit
def from_z(z):
    w = eg3d.apply(generator, z, jnp.repeat(front, len(z), 0), method='mapping')
    return eg3d.apply(generator, w, jnp.repeat(front, len(z), 0), method='synthesis')['image']


show(from_z(jax.random.normal(jax.random.key(0), (6, config.generator.z_dim))), titles=['random heads'])

# %% [markdown]
# ## The portrait
#
# A `Portrait` is a picture with what was measured on it. Here the measurements are exact.

# %%
motion = person.motion()
head = person.render(0, resolution=config.generator.img_resolution)
portrait = aj.Portrait(
    image=np.float32(2 * head.rgb - 1),
    camera=aj.Camera.from_label(person.labels()[0]),
    expression=motion.expression[0],
    angle=motion.angle[0],
    translation=motion.translation[0],
    landmarks=head.landmarks,
    mask=head.mask,
    basis=motion.basis,
    source=person.name,
)

# %% [markdown]
# ## Decoupling-by-inverting, one-shot
#
# The identity code starts at the average head and follows the gradient of the loss, first with one row for all layers
# (W), then with all rows free (W+). The controller's answer to the portrait's own expression is added all the while, so
# the code does not have to explain the expression.

# %%
built = model.build(portrait, steps=STEPS)
print(f'{built.scores["psnr_in_mask"]:.1f} dB in the head mask')
plt.figure(figsize=(5, 2.2))
plt.plot(built.curves['loss'])
plt.xlabel('step')
plt.ylabel('loss')
plt.show()
show([portrait.image, *built.views], titles=['portrait, reconstruction from its side and two others'])

# %% [markdown]
# ## Animation
#
# `model.drive` makes the signals that the method reads, here windows of the driver's motion: 27 frames of 64
# expression, 3 angle and 3 translation numbers. `aj.animate` is a pure function of the weights, the avatar, such a
# drive and cameras. (`model.frames` does the same for clips of any length, in bounded memory.)

# %%
frames = np.linspace(0, driver.num_frames - 1, 6).round().astype(int)
drive, labels = model.drive(driver.motion()).frames(frames), driver.labels()[frames]
animate = jax.jit(lambda v, a, d, c: aj.animate(model.method, v, config, a, d, c))
avatar = built.avatar
pictures = animate(variables, avatar, drive, labels).rgb


def truth(who):
    return [2 * who.render_as(driver, int(f), resolution=config.generator.img_resolution).rgb - 1 for f in frames]


show(truth(driver), pictures, truth(person), titles=['driver', 'avatar', 'truth'])

# %% [markdown]
# ## Functions of functions
#
# The same avatar from many sides is `vmap` over cameras; how the picture depends on the driver's jaw is `grad`.

# %%
yaws = np.deg2rad([-30, -18, -6, 6, 18, 30])
still = drive.frames(np.zeros(len(yaws), int))
around = pose_labels(np.stack([0 * yaws, yaws, 0 * yaws], -1), np.zeros((len(yaws), 3)))
show(animate(variables, avatar, still, around).rgb, titles=['turned'])


def mouth_brightness(jaw):
    window = jnp.asarray(drive.signals['windows'][:1]).at[..., 0].set(jaw)
    image = aj.animate(model.method, variables, config, avatar, aj.Drive({'windows': window}), labels[:1]).rgb
    return image[:, 80:100, 50:78].mean()


slope = jax.jit(jax.grad(mouth_brightness))(0.2)
print(f'brightness of the mouth region per unit of jaw opening: {float(slope):+.3f}')
assert np.isfinite(slope)
