"""Face-recognition networks, each under the key names of its public weight file.

* `ResNetArcFace`: the gray 18-layer network of OTAvatar's identity loss (optionally with squeeze-excitation).
* `IResNet`: insightface's 18/34/50/100-layer networks.
* `IRBackbone`: IR-50 and IR-SE-50 of the pSp / e4e family.

All run on fixed statistics, but for the IR units, which also train (they are the body of the e4e encoder: ``train``
uses the batch's own statistics, over all devices along ``axis_name``). Embeddings are [N,512];
`l2_normalize` them for a cosine.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from avatar_jax.models.perception.layers import BatchNorm, Conv, Linear, PReLU, flatten_chw, max_pool
from avatar_jax.ops.resize import resize

GRAY = (0.2989, 0.5870, 0.1140)


def to_gray(image: jax.Array) -> jax.Array:
    """Luma of RGB images [...,3] -> [...,1], same range."""
    return image @ jnp.asarray(GRAY, image.dtype)[:, None]


def l2_normalize(x: jax.Array) -> jax.Array:
    """Vectors of unit length along the last axis (no epsilon; a zero vector gives NaN)."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Downsample(nn.Module):
    """1x1 convolution and batch norm under the names ``0`` and ``1``."""

    inputs: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train: bool = False, axis_name: str | None = None):
        x = Conv(self.inputs, self.features, 1, self.stride, 0, name='0')(x)
        return BatchNorm(self.features, name='1')(x, train, axis_name)


# ------------------------------------------------------------------------------------------------ ResNetArcFace (gray)


class _Excitation(nn.Module):
    """Linear, PReLU, Linear, sigmoid under ``fc.0..2``."""

    features: int

    @nn.compact
    def __call__(self, x):
        x = Linear(self.features, self.features // 16, name='0')(x)
        x = Linear(self.features // 16, self.features, name='2')(PReLU(name='1')(x))
        return jax.nn.sigmoid(x)


class _GateFC(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return x * _Excitation(self.features, name='fc')(x.mean((1, 2)))[:, None, None]


class ArcFaceBlock(nn.Module):
    """IR block: the first convolution keeps the width, and one single-slope PReLU is used twice."""

    inputs: int
    features: int
    stride: int = 1
    use_se: bool = False

    @nn.compact
    def __call__(self, x):
        activation = PReLU(name='prelu')
        y = Conv(self.inputs, self.inputs, name='conv1')(BatchNorm(self.inputs, name='bn0')(x))
        y = activation(BatchNorm(self.inputs, name='bn1')(y))
        y = BatchNorm(self.features, name='bn2')(Conv(self.inputs, self.features, 3, self.stride, name='conv2')(y))
        if self.use_se:
            y = _GateFC(self.features, name='se')(y)
        if self.stride != 1 or self.inputs != self.features:
            x = Downsample(self.inputs, self.features, self.stride, name='downsample')(x)
        return activation(y + x)


def embedding_head(x: jax.Array, features: int = 512) -> jax.Array:
    """Batch norm, flatten in C,H,W order, linear, batch norm: keys ``bn4``, ``fc5``, ``bn5`` of the calling module."""
    channels, inputs = x.shape[-1], x.shape[1] * x.shape[2] * x.shape[3]
    x = flatten_chw(BatchNorm(channels, name='bn4')(x))
    return BatchNorm(features, name='bn5')(Linear(inputs, features, name='fc5')(x))


class _Stage(nn.Module):
    inputs: int
    features: int
    stride: int
    count: int
    use_se: bool

    @nn.compact
    def __call__(self, x):
        for i in range(self.count):
            inputs, stride = (self.inputs, self.stride) if i == 0 else (self.features, 1)
            x = ArcFaceBlock(inputs, self.features, stride, self.use_se, name=str(i))(x)
        return x


class ResNetArcFace(nn.Module):
    """ArcFace ResNet on gray 128x128 images in [-1, 1]: 25,627,081 parameters without squeeze-excitation."""

    layers: tuple[int, ...] = (2, 2, 2, 2)
    use_se: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, stages: bool = False):
        """[N,128,128,1] -> [N,512], or with ``stages`` also the activations after the stem and the four layers."""
        if x.shape[1:] != (128, 128, 1):
            raise ValueError(f'ResNetArcFace takes gray images [N,128,128,1], got {x.shape}')
        x = PReLU(name='prelu')(BatchNorm(64, name='bn1')(Conv(1, 64, name='conv1')(x)))
        x = max_pool(x, 2, 2)
        taps, inputs = [x], 64
        for i, (features, count) in enumerate(zip((64, 128, 256, 512), self.layers), 1):
            x = _Stage(inputs, features, 1 if i == 1 else 2, count, self.use_se, name=f'layer{i}')(x)
            inputs = features
            taps.append(x)
        x = embedding_head(x)
        return (x, taps) if stages else x


# ------------------------------------------------------------------------------------------------ insightface iResNet


class IBasicBlock(nn.Module):
    """insightface block: per-channel PReLU between the convolutions, no activation after the sum."""

    inputs: int
    features: int
    stride: int = 1
    project: bool | None = None

    @nn.compact
    def __call__(self, x):
        y = Conv(self.inputs, self.features, name='conv1')(BatchNorm(self.inputs, name='bn1')(x))
        y = PReLU(self.features, name='prelu')(BatchNorm(self.features, name='bn2')(y))
        y = BatchNorm(self.features, name='bn3')(Conv(self.features, self.features, 3, self.stride, name='conv2')(y))
        project = self.stride != 1 or self.inputs != self.features if self.project is None else self.project
        return y + (Downsample(self.inputs, self.features, self.stride, name='downsample')(x) if project else x)


class _IStage(nn.Module):
    inputs: int
    features: int
    count: int

    @nn.compact
    def __call__(self, x):
        x = IBasicBlock(self.inputs, self.features, 2, name='0')(x)
        for i in range(1, self.count):
            x = IBasicBlock(self.features, self.features, name=str(i))(x)
        return x


IRESNET_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


class IResNet(nn.Module):
    """insightface iResNet with ``depth`` 18, 34, 50 or 100; the embedding is not normalised."""

    depth: int = 50

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """RGB images [N,112,112,3] in [-1, 1] -> [N,512]."""
        if self.depth not in IRESNET_LAYERS:
            raise ValueError(f'iResNet depth {self.depth}: use one of {sorted(IRESNET_LAYERS)}')
        if x.shape[1:] != (112, 112, 3):
            raise ValueError(f'iResNet takes RGB images [N,112,112,3], got {x.shape}')
        x = PReLU(64, name='prelu')(BatchNorm(64, name='bn1')(Conv(3, 64, name='conv1')(x)))
        inputs = 64
        for i, (features, count) in enumerate(zip((64, 128, 256, 512), IRESNET_LAYERS[self.depth]), 1):
            x = _IStage(inputs, features, count, name=f'layer{i}')(x)
            inputs = features
        x = flatten_chw(BatchNorm(512, name='bn2')(x))
        return BatchNorm(512, name='features')(Linear(512 * 7 * 7, 512, name='fc')(x))


# ---------------------------------------------------------------------------------------------------- IR-50, IR-SE-50


class _SqueezeExcite(nn.Module):
    """Two bias-free 1x1 convolutions on the global mean, ReLU between, sigmoid after."""

    features: int
    reduction: int = 16

    @nn.compact
    def __call__(self, x):
        reduced = self.features // self.reduction
        g = x.mean((1, 2), keepdims=True)
        g = jax.nn.relu(Conv(self.features, reduced, 1, padding=0, name='fc1')(g))
        return x * jax.nn.sigmoid(Conv(reduced, self.features, 1, padding=0, name='fc2')(g))


class _Residual(nn.Module):
    inputs: int
    features: int
    stride: int
    use_se: bool
    reduction: int = 16

    @nn.compact
    def __call__(self, x, train: bool = False, axis_name: str | None = None):
        x = BatchNorm(self.inputs, name='0')(x, train, axis_name)
        x = Conv(self.inputs, self.features, name='1')(x)
        x = Conv(self.features, self.features, 3, self.stride, name='3')(PReLU(self.features, name='2')(x))
        x = BatchNorm(self.features, name='4')(x, train, axis_name)
        return _SqueezeExcite(self.features, self.reduction, name='5')(x) if self.use_se else x


class IRUnit(nn.Module):
    """IR(-SE) bottleneck; where the width does not change, the shortcut is plain subsampling."""

    inputs: int
    features: int
    stride: int = 1
    use_se: bool = True
    reduction: int = 16

    @nn.compact
    def __call__(self, x, train: bool = False, axis_name: str | None = None):
        if self.inputs == self.features:
            shortcut = x[:, :: self.stride, :: self.stride]
        else:
            down = Downsample(self.inputs, self.features, self.stride, name='shortcut_layer')
            shortcut = down(x, train, axis_name)
        residual = _Residual(self.inputs, self.features, self.stride, self.use_se, self.reduction, name='res_layer')
        return residual(x, train, axis_name) + shortcut


IR50_STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # width, units; the first unit of each has stride 2


class IRStem(nn.Module):
    """Convolution, batch norm and PReLU before the units: keys ``0``, ``1``, ``2``."""

    features: int = 64

    @nn.compact
    def __call__(self, x, train: bool = False, axis_name: str | None = None):
        x = BatchNorm(self.features, name='1')(Conv(3, self.features, name='0')(x), train, axis_name)
        return PReLU(self.features, name='2')(x)


class IRBody(nn.Module):
    """All units, numbered from 0.

    Attributes:
        use_se: with squeeze-excitation, whose middle has 1 / ``reduction`` of the channels.
        stages: (width, units) of each stage; the first unit of a stage halves the size.
        inputs: channels of the stem.
    """

    use_se: bool = True
    stages: tuple[tuple[int, int], ...] = IR50_STAGES
    inputs: int = 64
    reduction: int = 16

    @nn.compact
    def __call__(self, x, train: bool = False, axis_name: str | None = None) -> list[jax.Array]:
        """[N,H,W,inputs] -> the features after each stage."""
        index, inputs, taps = 0, self.inputs, []
        for features, count in self.stages:
            for i in range(count):
                unit = IRUnit(inputs, features, 2 if i == 0 else 1, self.use_se, self.reduction, name=str(index))
                x = unit(x, train, axis_name)
                inputs, index = features, index + 1
            taps.append(x)
        return taps


class _Output(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Linear(512 * 7 * 7, 512, name='3')(flatten_chw(BatchNorm(512, name='0')(x)))
        return BatchNorm(512, name='4')(x)


class IRBackbone(nn.Module):
    """IR-SE-50 (43,797,696 parameters), or IR-50 (43,574,976) with ``use_se=False``; not normalised."""

    use_se: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """RGB images [N,112,112,3] in [-1, 1] -> [N,512]."""
        if x.shape[1:] != (112, 112, 3):
            raise ValueError(f'IR-50 takes RGB images [N,112,112,3], got {x.shape}')
        taps = IRBody(self.use_se, name='body')(IRStem(name='input_layer')(x))
        return _Output(name='output_layer')(taps[-1])


def ffhq_face_crop(image: jax.Array) -> jax.Array:
    """The crop that the pSp family feeds to IR-SE-50: FFHQ-aligned [N,256,256,3] -> [N,112,112,3]."""
    if image.shape[1:3] != (256, 256):
        raise ValueError(f'ffhq_face_crop takes images of 256x256, got {image.shape}')
    return resize(image[:, 35:223, 32:220], 112, 'area')
