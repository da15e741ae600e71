"""How the recorded computations of each kind are done again with imported weights."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.convert import imported
from avatar_jax.convert.export import discriminator_keys, generator_keys, original
from avatar_jax.convert.kinds import eg3d, faces, perception
from avatar_jax.convert.kinds.otavatar import CONTROLLER_METHOD
from avatar_jax.convert.kinds.otavatar import METHOD as OTAVATAR
from avatar_jax.convert.layout import to_torch
from avatar_jax.convert.verify import Run, comparison
from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM, FaceCamera
from avatar_jax.faces.flame import FLAME, rodrigues
from avatar_jax.faces.flame import METHOD as FLAME_METHOD
from avatar_jax.faces.recon import PREFIX, ReconNet
from avatar_jax.losses.perception import NETWORKS
from avatar_jax.losses.perceptual import perceptual_layers, perceptual_target
from avatar_jax.methods.otavatar.controller import Controller, to_release_keys
from avatar_jax.methods.otavatar.model import load_model, network
from avatar_jax.models.mapping import MappingNetwork
from avatar_jax.models.perception.arcface import ffhq_face_crop, l2_normalize, to_gray
from avatar_jax.models.perception.inception import fid_features
from avatar_jax.models.perception.lpips import lin_weights, lpips_features, lpips_layers
from avatar_jax.models.triplane import TriPlaneGenerator
from avatar_jax.ops.resize import filtered_resizing
from avatar_jax.render.sampling import RenderDraws

VALUE, IMAGE, NET, GEOMETRY = 2e-4, 5e-4, 1e-3, 1e-4


def nhwc(x) -> jax.Array:
    """[N, C, H, W] -> [N, H, W, C]."""
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def nchw(x) -> np.ndarray:
    """[N, H, W, C] -> [N, C, H, W]."""
    return np.moveaxis(np.asarray(x), -1, 1)


def picture(x) -> jax.Array:
    """Bytes [N, C, H, W] -> [N, H, W, C] in [-1, 1]."""
    return nhwc(np.asarray(x, np.float32) / 127.5 - 1)


def thinned(value: np.ndarray, expected: np.ndarray, offsets: tuple[int, ...] | None = None) -> np.ndarray:
    """Every n-th entry of each axis of which a part is recorded; n follows from the two lengths."""
    index = []
    for axis, (full, part) in enumerate(zip(value.shape, expected.shape, strict=True)):
        step = next((s for s in range(1, full + 1) if -(-full // s) == part), 1)
        index.append(slice(offsets[axis] if offsets else 0, None, step))
    return value[tuple(index)]


def described(run: Run, name: str, value: np.ndarray) -> np.ndarray:
    """The part of an output that the record's description says: ``name = something[:,::2,5::32]``."""
    found = re.search(rf'{re.escape(name)} ?= ?\w+(\[[\d:,]+\])', str(run.golden.config.get('what', '')))
    if not found:
        return value
    parts = [slice(*(int(x) if x else None for x in part.split(':'))) for part in found.group(1).strip('[]').split(',')]
    return value[tuple(parts)]


# ----------------------------------------------------------------------------------------------------------- generator


def _generator(run: Run):
    """Variables and configuration of the imported generator, alone or out of OTAvatar."""
    weights = run.find(eg3d.METHOD, OTAVATAR)
    if weights.method == eg3d.METHOD:
        return imported.load_generator(weights.path)
    variables, config, _, _ = load_model(weights.path)
    return network(variables, 'generator'), config.generator


def _weighted_loss(out) -> jax.Array:
    def ramp(image):
        height, width, channels = image.shape[1:]
        y, x = jnp.arange(height)[:, None, None] / height, jnp.arange(width)[None, :, None] / width
        return y - x + 0.25 * (jnp.arange(channels) - 1)

    image, raw = out['image'], out['image_raw']
    return (image**2 * (1 + ramp(image))).mean() + (raw**2 * ramp(raw)).mean() + 0.5 * out['image_depth'].mean()


@comparison('triplane_e2e', 'triplane_full')
def _triplane(run: Run) -> None:
    golden, cfg = run.golden, run.golden.config
    variables, config = _generator(run)
    config = config.replace(
        neural_rendering_resolution=int(cfg.get('neural_rendering_resolution', config.neural_rendering_resolution)),
        release_image_raw=True,
    )
    model, c = TriPlaneGenerator(config), jnp.asarray(golden.inp['c'])
    if golden.param:
        run.weights(generator_keys(variables, config.superresolution))
    seed, rays, samples = cfg.get('SEED'), config.neural_rendering_resolution**2, config.rendering.depth_resolution
    fine = config.rendering.depth_resolution_importance

    def recorded(name, default):
        if name in golden.inp:
            return golden.inp[name]
        if seed is None:
            raise UserError(f'{golden.path}: has no in/{name}')
        return default()

    z = recorded('z', lambda: np.random.RandomState(seed).randn(len(c), config.z_dim).astype(np.float32))
    jitter = recorded(
        'jitter', lambda: np.random.RandomState(seed + 1).random_sample((len(c), rays, samples, 1)).astype(np.float32)
    )
    draws = RenderDraws(jnp.asarray(jitter).reshape(len(c), rays, samples))
    if fine:
        u = recorded(
            'u_importance',
            lambda: np.random.RandomState(seed + 2).random_sample((len(c) * rays, fine)).astype(np.float32),
        )
        draws = draws.replace(importance=jnp.asarray(u).reshape(len(c), rays, fine))
    psi, cutoff = cfg.get('truncation_psi', 0.7 if seed else 1.0), cfg.get('truncation_cutoff', 14 if seed else None)
    ws = model.apply(
        variables, jnp.asarray(z), jnp.asarray(golden.inp['c_conditioning']), psi, cutoff, method='mapping'
    )
    run.compare('ws', ws, VALUE)
    run.compare('ws_row0', ws[:, 0], VALUE)
    ws = jnp.asarray(golden.out['ws']) if 'ws' in golden.out else ws
    noise_mode, points = cfg.get('noise_mode', 'const'), golden.inp.get('points')

    @jax.jit
    def render(variables, ws):
        planes = model.apply(variables, ws, noise_mode, method='planes')
        out = model.apply(variables, ws, c, draws=draws, planes=planes, method='synthesis')
        sampled = (
            None if points is None else model.apply(variables, planes, jnp.asarray(points), method='sample_density')
        )
        return planes, out, sampled

    planes, out, sampled = render(variables, ws)
    flat = np.asarray(planes).transpose(0, 1, 4, 2, 3)
    flat = flat.reshape(flat.shape[0], -1, *flat.shape[3:])
    run.compare('planes', flat, VALUE)
    run.compare('planes_strided', described(run, 'planes_strided', flat), VALUE)
    run.compare('planes_mean', flat.mean((2, 3)), VALUE)
    run.compare('planes_std', flat.std((2, 3), ddof=1), VALUE)
    image = nchw(out['image'])
    run.compare('image', image, IMAGE)
    run.compare('image_strided', described(run, 'image_strided', image), IMAGE)
    run.compare('image_mean', image.mean((2, 3)), IMAGE)
    run.compare('image_std', image.std((2, 3), ddof=1), IMAGE)
    run.compare('image_raw', nchw(out['image_raw']), IMAGE)
    run.compare('image_depth', nchw(out['image_depth']), IMAGE)
    run.compare('loss', _weighted_loss(out), IMAGE)
    if sampled is not None:
        run.compare('points_rgb', sampled[0], VALUE)
        run.compare('points_sigma', sampled[1], VALUE)


@comparison('dual_discriminator')
def _discriminator(run: Run) -> None:
    golden, cfg = run.golden, run.golden.config
    variables, net = imported.load_discriminator(run.path(eg3d.DISCRIMINATOR_METHOD))
    if golden.param:
        run.weights(discriminator_keys(variables))
    if 'image' in golden.inp:
        image, raw = nhwc(golden.inp['image']), nhwc(golden.inp['image_raw'])
    else:
        image, raw = (_formula_picture(cfg, name) for name in ('image', 'image_raw'))
    c = jnp.asarray(golden.inp['c'])
    logits = jax.jit(net.apply)(variables, image, raw, c)
    run.compare('logits', logits, VALUE)
    run.compare('loss_gen', jnp.mean(jax.nn.softplus(logits)), VALUE)
    run.compare('loss_real', jnp.mean(jax.nn.softplus(-logits)), VALUE)
    resized = nchw(filtered_resizing(raw, net.img_resolution))
    if 'image_raw_resized_strided' in golden.out:
        run.compare('image_raw_resized_strided', thinned(resized, golden.out['image_raw_resized_strided']), VALUE)
    if 'cmap' in golden.out:
        mapping = MappingNetwork(0, net.c_dim, golden.out['cmap'].shape[1], None, net.mapping_layers)
        run.compare('cmap', mapping.apply({'params': variables['params']['mapping']}, None, c), VALUE)
    if any(name.startswith('r1_') or name == 'loss_r1' for name in golden.out):
        gradient = jax.jit(jax.grad(lambda i, r: jnp.sum(net.apply(variables, i, r, c)), (0, 1)))
        gi, gr = gradient(image, raw)
        penalty = jnp.sum(jnp.square(gi), (1, 2, 3)) + jnp.sum(jnp.square(gr), (1, 2, 3))
        run.compare('r1_penalty', penalty, VALUE)
        run.compare('loss_r1', jnp.mean(penalty) * (cfg.get('gamma', 1.0) / 2), VALUE)
        run.compare('r1_grad_image_raw', nchw(gr), 3e-3)
        if 'r1_grad_image_strided' in golden.out:
            run.compare('r1_grad_image_strided', thinned(nchw(gi), golden.out['r1_grad_image_strided']), 3e-3)


def _formula_picture(cfg, name: str) -> jax.Array:
    """Uniform bytes; the offset of the seed and the shape are in the description of the record."""
    found = re.search(name + r' = RandomState\(SEED\+(\d+)\)\.randint\(0,256,\(([\d,]+)\)\)', str(cfg.get('what', '')))
    if not found:
        raise UserError(f'the record has no in/{name} and does not describe it')
    shape = tuple(int(n) for n in found.group(2).split(','))
    pixels = np.random.RandomState(cfg['SEED'] + int(found.group(1))).randint(0, 256, shape)
    return nhwc((pixels / 127.5 - 1).astype(np.float32))


# ---------------------------------------------------------------------------------------------------------- controller


@comparison('controller_full', 'controller_variant')
def _controller(run: Run) -> None:
    golden = run.golden
    weights = run.find(CONTROLLER_METHOD, OTAVATAR)
    if weights.method == CONTROLLER_METHOD:
        variables, config = imported.load_controller(weights.path)
    else:
        variables, model, _, _ = load_model(weights.path)
        variables, config = network(variables, 'controller'), model.method.controller
    hyper = golden.config.get('hyper', {})
    told = {'short_cut': hyper.get('if_short_cut', True), 'scaling': hyper.get('if_plus_scaling', False)}
    differ = [k for k, v in told.items() if getattr(config, k) != v]
    if differ:
        raise UserError(f'{golden.path}: was recorded with other options of the controller: {", ".join(differ)}')
    run.weights(to_release_keys(variables['params'], config))
    module, motion = Controller(config), jnp.asarray(golden.inp['driving'].transpose(0, 2, 1))
    code, state = module.apply(variables, motion, method='codes', mutable='intermediates')
    run.compare('ws_trans', code.w_x, VALUE)
    run.compare('alpha', code.alpha, VALUE)
    if code.scaling is not None:
        run.compare('ws_scaling', code.scaling, VALUE)
    run.compare('Q', module.apply(variables, method='basis'), VALUE)
    inner = state['intermediates']['mapping_3DMM']
    run.compare('pooled', np.asarray(inner['pooled'][0])[:, :, None], VALUE)
    for name in golden.out:
        if name == 'first' or name.startswith('encoder'):
            value = np.asarray(inner[f'after_{name}'][0]).transpose(0, 2, 1)
            run.compare(name, thinned(value, golden.out[name]), VALUE)
    if 'scalar' in golden.out:
        target = jnp.asarray(golden.inp['target'])
        run.compare('scalar', jnp.sum(code.w_x * target) / 100 + jnp.mean(code.alpha**2), NET)


# ---------------------------------------------------------------------------------------------------------- perception

_FACE_NETS = {'arc18': 'arcface18', 'arc18_se': 'arcface18_se'}


def _variables(run: Run, name: str):
    weights = run.find(f'perception/{name}')
    if name in NETWORKS and run.golden.param:
        flat = to_torch(weights.variables)
        run.weights(flat, {k: v for k, v in run.golden.param.items() if k in flat})
    return jax.tree.map(jnp.asarray, weights.variables)


def _apply(name: str):
    return jax.jit(NETWORKS[name].build().apply)


@comparison('arcface_full')
def _arcface(run: Run) -> None:
    golden, variables = run.golden, _variables(run, 'arcface18')
    module = NETWORKS['arcface18'].build()
    embedding, stages = jax.jit(lambda v, x: module.apply(v, x, stages=True))(variables, nhwc(golden.inp['gray']))
    for name, stage in zip(('stem', 'layer1', 'layer2', 'layer3', 'layer4'), stages, strict=True):
        if name in golden.out:
            run.compare(name, thinned(nchw(stage), golden.out[name]), VALUE)
    run.compare('embedding', embedding, VALUE)
    if 'target' in golden.inp:
        # A mean of numbers of both signs: its error is measured against the numbers, not against what is left of them.
        run.compare('scalar', jnp.mean(embedding * jnp.asarray(golden.inp['target'])), 1e-2)


@comparison('arcface_nets')
def _face_nets(run: Run) -> None:
    """Compares the embeddings of those networks that were imported."""
    golden, kept = run.golden, {}

    def embed(name, x):
        if name not in kept:
            kept.clear()  # they are large
            kept[name] = _variables(run, name)
        return _apply(name)(kept[name], x)

    for key in sorted(golden.out):
        net, _, variant = key.partition('_')
        if key.startswith('psp_crop'):
            crop = ffhq_face_crop(picture(golden.inp['big_u8']))
            if variant.endswith('slice'):
                run.compare(key, thinned(nchw(crop), golden.out[key]), NET)
            elif 'perception/irse50' in run.files:
                run.compare(key, l2_normalize(embed('irse50', crop)), NET)
            continue
        net = net if variant in ('', 'raw', 'norm') else key
        name = _FACE_NETS.get(net, net)
        if f'perception/{name}' not in run.files:
            continue
        x = to_gray(picture(golden.inp['g_u8'])) if name.startswith('arcface18') else picture(golden.inp['x_u8'])
        y = embed(name, x)
        run.compare(key, l2_normalize(y) if variant == 'norm' else y, NET)


@comparison('vgg19_perceptual')
def _vgg(run: Run) -> None:
    golden, variables = run.golden, _variables(run, 'vgg19')
    a, b = picture(golden.inp['a_u8']), picture(golden.inp['b_u8'])
    layers, weight = golden.config['layers'], golden.config['style_weight']
    scales = max(int(k.removeprefix('total_')) for k in golden.out if k.startswith('total_'))
    content, style = jax.jit(lambda v, a, b: perceptual_layers(v, a, perceptual_target(v, b, scales)))(variables, a, b)
    for i, layer in enumerate(layers):
        run.compare(f'style_{layer}', style[0, i], NET)
        for s in range(scales):
            run.compare(f'l1_s{s}_{layer}', content[s, i], NET)
    for count in range(1, scales + 1):
        run.compare(f'total_{count}', content[:count].sum() + weight * style[0].sum(), NET)


@comparison('perceptual')
def _perceptual(run: Run) -> None:
    golden, variables = run.golden, _variables(run, 'vgg19')
    scales, weight = golden.config['num_scales'], golden.config['style_to_perceptual']
    pred, target = nhwc(golden.inp['pred']), nhwc(golden.inp['target'])
    mask = nhwc(golden.inp['mask']) if 'mask' in golden.inp else None

    @jax.jit
    def terms(variables, pred, target, mask):
        return perceptual_layers(variables, pred, perceptual_target(variables, target, scales, mask=mask))

    content, style = terms(variables, pred, target, mask)
    run.compare('loss', content.sum() + weight * style.sum(), NET)
    run.compare('per_layer_l1', content, NET)
    run.compare('gram_l1', style[0], NET)


@comparison('lpips_nets')
def _lpips(run: Run) -> None:
    """Compares those variants whose trunk was imported; recorded channel weights are used where there are any."""
    golden = run.golden
    a, b = picture(golden.inp['a_u8']), picture(golden.inp['b_u8'])
    for net, trunk in (('alex', 'alexnet'), ('vgg', 'vgg16'), ('squeeze', 'squeezenet')):
        if f'{net}.total' not in golden.out or f'perception/{trunk}' not in run.files:
            continue
        variables = _variables(run, trunk)
        stored = {k.partition('.')[2]: v for k, v in golden.param.items() if k.startswith(f'{net}.lin')}
        lin = lin_weights(stored or to_torch(run.find(f'perception/lpips_{net}').variables))

        @jax.jit
        def layers(variables, a, b, net=net, lin=lin):
            taps = lpips_features(net, variables, a)
            return taps, lpips_layers(taps, lpips_features(net, variables, b), lin)

        taps, values = layers(variables, a, b)
        for k in range(len(lin)):
            run.compare(f'{net}.tap_{k}_mean', taps[k].mean((1, 2)), NET)
            run.compare(f'{net}.layer_{k}', np.asarray(values[:, k])[:, None, None, None], NET)
        run.compare(f'{net}.total', np.asarray(values.sum(-1))[:, None, None, None], NET)
        if stored:
            run.result.notes.append(f'{net}: channel weights of the record, not imported ones')


@comparison('inception_fid')
def _inception(run: Run) -> None:
    golden, variables = run.golden, _variables(run, 'inception')
    x = nhwc(np.asarray(golden.inp['x_u8'], np.float32) / 255)
    features, blocks = jax.jit(fid_features, static_argnums=2)(variables, x, True)
    for i, block in enumerate(blocks):
        if f'block{i}' in golden.out:
            run.compare(f'block{i}', thinned(nchw(block), golden.out[f'block{i}']), NET)
    run.compare('pool3', features, NET)


@comparison('recon_net')
def _recon(run: Run) -> None:
    golden = run.golden
    variables, config = imported.load_recon(run.path(perception.RECON_METHOD))
    run.weights({PREFIX + k: v for k, v in to_torch(variables).items()})
    module, image = ReconNet(config), nhwc(golden.inp['image'])
    for name, value in jax.jit(lambda v, x: module.apply(v, x, method='features'))(variables, image).items():
        run.compare(name, nchw(value), VALUE)
    run.compare('coeffs', jax.jit(module.apply)(variables, image), VALUE)


# --------------------------------------------------------------------------------------------------------- face models


@comparison('bfm')
def _bfm(run: Run) -> None:
    golden, cfg = run.golden, run.golden.config
    weights = run.find(faces.BFM_METHOD)
    run.weights(original(weights))
    model = BFM.from_arrays(weights.variables['arrays'], recenter=cfg.get('recenter', True), source=str(weights.path))
    usual = FaceCamera()
    camera = FaceCamera(
        cfg.get('focal', usual.focal),
        cfg.get('center', usual.center),
        cfg.get('camera_distance', usual.distance),
        tuple(cfg.get('init_lit', usual.initial_light)),
    )
    face = jax.jit(lambda m, c: m.reconstruct(c, camera))(model, jnp.asarray(golden.inp['coeffs']))
    run.compare('mean_shape_recentred', model.mean_shape, GEOMETRY)
    for name in (
        'shape',
        'rotation',
        'transformed',
        'vertex',
        'texture',
        'normal',
        'normal_rotated',
        'color',
        'projected',
        'landmark',
    ):
        run.compare(name, getattr(face, name), GEOMETRY)


@comparison('flame')
def _flame(run: Run) -> None:
    golden, weights = run.golden, run.find(FLAME_METHOD)
    arrays, recorded = weights.variables['arrays'], {k.rpartition('.')[2]: v for k, v in run.golden.param.items()}
    run.weights(arrays, {k: v for k, v in recorded.items() if k in arrays})
    model = FLAME.from_arrays(arrays, str(weights.path))
    inp = {k: jnp.asarray(v) for k, v in golden.inp.items()}
    head = model(inp['shape'], inp['expression'], inp['pose'])
    run.compare('vertices', head.vertices, GEOMETRY)
    run.compare('joints_rest', head.joints_rest, GEOMETRY)
    run.compare('joints_posed', head.joints, GEOMETRY)
    run.compare('dynamic_row', model.contour_rows(inp['pose']), 0.0)
    if model.contour is not None:
        run.compare('landmarks2d', model.landmarks2d(head.vertices, inp['pose']), GEOMETRY)
        run.compare('landmarks3d', model.landmarks3d(head.vertices), GEOMETRY)
    if model.mediapipe is not None:
        run.compare('landmarks_mediapipe', model.landmarks_mediapipe(head.vertices), GEOMETRY)
    if 'eye_pose' in inp:
        eyes = model(inp['shape'], inp['expression'], inp['pose'], inp['eye_pose'])
        run.compare('vertices_eye', eyes.vertices, GEOMETRY)
    if 'full_pose_general' in inp:
        general = model.posed(model.shaped(inp['shape'], inp['expression']), inp['full_pose_general'])
        run.compare('vertices_general', general.vertices, GEOMETRY)
        run.compare('joints_posed_general', general.joints, GEOMETRY)
    if 'rotvec' in inp:
        run.compare('rodrigues', rodrigues(inp['rotvec']), GEOMETRY)
