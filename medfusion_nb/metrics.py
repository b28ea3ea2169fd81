#| export
import inspect, math
from dataclasses import dataclass
from functools import lru_cache, wraps
from types import SimpleNamespace
import numpy as np, pandas as pd, torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

#| export
def _check(
    fused:Tensor, a:Tensor|None, b:Tensor|None, # (B,1,H,W) images in [0, data_range]; sources may be None for metrics that ignore them
    data_range:float, # value of white
    name:str, # metric's name, for the messages
)->tuple: # the images on a scale of 0..255; half precision becomes float32
    "Validate the images of one call and scale them to 0..255; raises ValueError saying what was found"
    if not (isinstance(data_range, (int, float)) and 0 < data_range < math.inf):
        raise ValueError(f'{name}: data_range must be the value of white (1. or 255.), found {data_range!r}')
    out = []
    for label, x in dict(fused=fused, a=a, b=b).items():
        if x is None and label!='fused': out.append(None); continue
        if not isinstance(x, Tensor): raise ValueError(f'{name}: {label} must be a tensor, found {type(x).__name__}')
        if x.ndim!=4 or x.shape[1]!=1 or 0 in x.shape:
            raise ValueError(f'{name}: {label} has shape {tuple(x.shape)}, expected (B,1,H,W); use x[None,None] or luma(x)')
        if x.shape!=fused.shape: raise ValueError(f'{name}: sizes differ, {label} has shape {tuple(x.shape)} and fused {tuple(fused.shape)}')
        if x.device!=fused.device or x.dtype!=fused.dtype:
            raise ValueError(f'{name}: {label} is {x.dtype} on {x.device}, fused is {fused.dtype} on {fused.device}; make them equal')
        if not x.is_floating_point():
            raise ValueError(f'{name}: {label} has dtype {x.dtype}, expected a float dtype; use x.float() with data_range=255')
        _check_values(x.detach(), data_range, name, label)
        if x.dtype in (torch.float16, torch.bfloat16): x = x.float()
        out.append(x if data_range==255 else x*255 if data_range==1 else x*(255/data_range))
    return out

#| export
def _check_values(
    x:Tensor, # (B,1,H,W)
    data_range:float, # value of white
    name:str, # metric's name
    label:str, # which of the images
):
    "Refuse NaN, infinity, values outside [0, data_range] and a [0,1] image handed in with a larger range"
    lo, hi = (v.item() for v in torch.aminmax(x))
    if not (math.isfinite(lo) and math.isfinite(hi)): raise ValueError(f'{name}: {label} holds NaN or infinity')
    eps = 1e-4*data_range
    if lo < -eps or hi > data_range+eps:
        raise ValueError(f'{name}: {label} spans {lo:.4g}..{hi:.4g}, outside the stated range 0..{data_range:g}; '
                         f'{"pass data_range=255" if data_range==1 and hi<=255 and lo>=0 else "clamp it or pass its data_range"}')
    if data_range>1 and 0<hi<=1 and bool((x!=x.round()).any()):
        raise ValueError(f'{name}: {label} spans {lo:.4g}..{hi:.4g} with fractions, a [0,1] image, but data_range={data_range:g}; pass data_range=1')

#| export
@dataclass(frozen=True)
class Metric:
    "Registry entry: a metric and what is known about it"
    name:str # as papers write it, e.g. 'Qabf'
    fn:object # the public function `(fused, a, b, data_range=1., variant='default')`
    raw:object # the same without checks, on 0..255 images
    better:str # 'higher', 'lower' or 'zero'
    range:str # in words, e.g. '0..8 bits'
    paper:str # source of the definition
    variants:dict # variant name -> what is special about it; the first is the default
    grad:tuple # variants through which gradients flow
    needs_sources:bool # False when only the fused image counts

METRICS = {}

#| export
def metric(
    name:str, # as papers write it
    better:str, # 'higher', 'lower' or 'zero'
    range:str, # in words
    paper:str, # author and year
    variants:dict, # variant name -> what is special about it, default first
    grad=(), # names of the variants that are differentiable, or True for all
):
    "Decorator: register a function of 0..255 images, add input checks and the choice of variant"
    def deco(f):
        needs = inspect.signature(f).parameters['a'].default is inspect.Parameter.empty
        @wraps(f)
        def call(fused, a=None, b=None, data_range=1., variant='default'):
            variant = _variant(name, variant)
            if needs and (a is None or b is None): raise ValueError(f'{name}: needs both sources a and b')
            x = _check(fused, a, b, data_range, name)
            return f(*x, data_range=255., variant=variant).to(x[0].dtype)
        METRICS[name] = Metric(name, call, f, better, range, paper, variants, tuple(variants) if grad is True else tuple(grad), needs)
        return call
    return deco

#| export
def _variant(
    name:str, # metric's name
    variant:str, # 'default' or one of the metric's variants
)->str: # the variant's own name
    "Resolve 'default' and refuse unknown variants (ValueError listing the known ones)"
    if name not in METRICS: raise ValueError(f'unknown metric {name!r}; known: {", ".join(METRICS)}')
    known = METRICS[name].variants
    if variant=='default': return next(iter(known))
    if variant not in known: raise ValueError(f'{name}: unknown variant {variant!r}; known: {", ".join(known)}')
    return variant

#| export
def gaussian_window(
    n:int, # taps
    sigma:float, # standard deviation in pixels
)->Tensor: # (n,) float64, sums to 1; the outer product with itself is the 2-D window
    "One axis of the normalised Gaussian window G(n, sigma)"
    i = torch.arange(n, dtype=torch.float64)-(n-1)/2
    g = torch.exp(-i**2/(2*sigma**2))
    return g/g.sum()

#| export
def _pad(
    x:Tensor, # (B,1,H,W)
    py:tuple, # rows added above, below
    px:tuple, # columns added left, right
    mode:str, # 'valid' none, 'same' zeros, 'replicate' edge, 'mirror' without and 'symmetric' with the edge pixel repeated
)->Tensor: # padded image
    "Pad an image in one of the five ways the field uses"
    if mode=='valid': return x
    if mode=='same': return F.pad(x, (*px, *py))
    if mode=='symmetric':
        for d, (lo, hi) in ((-2, py), (-1, px)):
            n = x.shape[d]
            x = torch.cat([x.narrow(d, 0, lo).flip(d), x, x.narrow(d, n-hi, hi).flip(d)], d)
        return x
    modes = dict(replicate='replicate', mirror='reflect')
    if mode not in modes: raise ValueError(f'unknown padding {mode!r}; known: valid, same, symmetric, replicate, mirror')
    return F.pad(x, (*px, *py), mode=modes[mode])

#| export
def _filter(
    x:Tensor, # (B,1,H,W)
    k:Tensor, # (n,) applied along both axes
    mode:str='valid', # see `_pad`
    kx:Tensor|None=None, # (m,) taps along the rows, when they differ from `k`
)->Tensor: # (B,1,H',W')
    "Correlate with the separable kernel `k[:,None]*kx[None]` (not flipped)"
    ky, kx = (t.to(x) for t in (k, k if kx is None else kx))
    n, m = len(ky), len(kx)
    if x.shape[-2]<n or x.shape[-1]<m: raise ValueError(f'image of {tuple(x.shape[-2:])} is smaller than the {n}x{m} window')
    x = _pad(x, ((n-1)//2, n//2), ((m-1)//2, m//2), mode)
    return _along(_along(x, kx, -1), ky, -2)

#| export
def _along(
    x:Tensor, # (B,1,H,W)
    k:Tensor, # (n,) taps
    d:int, # -1 along the rows, -2 down the columns
    block:int=48, # outputs of one matrix product
)->Tensor: # shorter by n-1 along that axis
    "'Valid' correlation along one axis, as products with a banded matrix"
    n = len(k)
    out = x.shape[d]-n+1
    band = k.new_zeros(min(block, out), min(block, out)+n-1)
    for i, t in enumerate(k): band.diagonal(i).fill_(t)
    parts = []
    for i in range(0, out, block):
        c = min(block, out-i)
        y, m = x.narrow(d, i, c+n-1), band[:c, :c+n-1]
        parts.append(y@m.T if d==-1 else m@y)
    return torch.cat(parts, d)

#| export
def _moments(
    x:Tensor, y:Tensor, # (B,1,H,W) images
    w:Tensor, # (n,) separable window
    mode:str='valid', # see `_pad`
)->tuple: # means of x and y, variances of x and y, covariance; each (B,1,H',W')
    "Local moments of two images by subtraction"
    n = len(x)
    mx, my, xx, yy, xy = _filter(torch.cat([x, y, x*x, y*y, x*y]), w, mode).split(n)
    return mx, my, xx-mx*mx, yy-my*my, xy-mx*my

#| export
def _moments3(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    w:Tensor, # (n,) separable window
    mode:str='valid', # see `_pad`
    ab:bool=False, # also the covariance of the sources
)->SimpleNamespace: # means mf ma mb, variances vf va vb, covariances caf cbf (cab)
    "Local moments of a fused image and its sources, each computed once"
    xs = [fused, a, b, fused*fused, a*a, b*b, a*fused, b*fused]+([a*b] if ab else [])
    mf, ma, mb, ff, aa, bb, af, bf, *rest = _filter(torch.cat(xs), w, mode).split(len(a))
    return SimpleNamespace(mf=mf, ma=ma, mb=mb, vf=ff-mf*mf, va=aa-ma*ma, vb=bb-mb*mb, caf=af-ma*mf, cbf=bf-mb*mf,
                           cab=rest[0]-ma*mb if ab else None)

#| export
def _ssim_map(
    mx:Tensor, my:Tensor, vx:Tensor, vy:Tensor, cxy:Tensor, # local moments
    c1:float, c2:float, # stabilising constants
)->Tensor: # SSIM at each window
    "Structural similarity from local moments (Wang 2004)"
    return (2*mx*my+c1)*(2*cxy+c2)/((mx*mx+my*my+c1)*(vx+vy+c2))

#| export
def _sobel(
    x:Tensor, # (B,1,H,W)
    mode:str='same', # see `_pad`
)->tuple: # responses to Sx = [[-1,0,1],[-2,0,2],[-1,0,1]] and Sy = [[-1,-2,-1],[0,0,0],[1,2,1]]
    "Horizontal and vertical Sobel responses (correlation)"
    p = _pad(x, (1, 1), (1, 1), mode)
    d, s = p[..., 2:]-p[..., :-2], p[..., 2:]+2*p[..., 1:-1]+p[..., :-2]
    return d[..., 2:, :]+2*d[..., 1:-1, :]+d[..., :-2, :], s[..., 2:, :]-s[..., :-2, :]

#| export
def _stretch(
    x:Tensor, # (B,1,H,W)
)->Tensor: # integers 0..255 (float64): round(255 (x-min)/(max-min)), halves up; 0 for a constant image
    "Stretch each image to the full 8-bit range as Liu's toolbox does"
    x = x.double()
    lo, hi = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return torch.floor(255*(x-lo)/torch.where(hi>lo, hi-lo, 1.)+.5)

#| export
def _safe_div(
    num:Tensor, den:Tensor, # numerator and denominator, broadcastable
    empty:float=0., # value where the denominator is zero
)->Tensor: # num/den
    "Divide, with a stated value (and zero gradient) where the denominator is exactly zero"
    ok = den!=0
    return torch.where(ok, num/torch.where(ok, den, torch.ones_like(den)), torch.full_like(den, empty))

#| export
def _safe_sqrt(
    x:Tensor, # non-negative values
)->Tensor: # square root; its gradient is 0 instead of infinite where x is 0
    "Square root for flat regions: zero (and zero gradient) where x is not positive"
    ok = x>0
    return torch.where(ok, torch.where(ok, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))

#| export
def hist(
    x:Tensor, # (B,1,H,W) grey values 0..255
)->Tensor: # (B,256) float64, each row sums to 1
    "Histogram of each image over the 256 integer grey values"
    B, i = len(x), x.detach().flatten(1).round().clamp(0, 255).long()
    return torch.bincount((i+256*torch.arange(B, device=x.device)[:, None]).flatten(), minlength=B*256).view(B, 256).double()/i.shape[1]

def joint_hist(
    x:Tensor, y:Tensor, # (B,1,H,W) grey values 0..255
)->Tensor: # (B,256,256) float64, entry [u,v] = fraction of pixels with x=u and y=v
    "Joint histogram of two images over the 256 x 256 integer grey values"
    B, i, j = len(x), *(t.detach().flatten(1).round().clamp(0, 255).long() for t in (x, y))
    k = (torch.arange(B, device=x.device)[:, None]*256+i)*256+j
    return torch.bincount(k.flatten(), minlength=B*65536).view(B, 256, 256).double()/i.shape[1]

#| export
def _soft_bins(
    x:Tensor, # (B,1,H,W) grey values 0..255
)->tuple: # lower and upper bin (B,n) int64, and the share of the upper one (B,n) float64
    "The two neighbouring bins of each pixel and its share in the upper one"
    x = x.flatten(1).double().clamp(0, 255)
    lo = x.detach().floor().clamp(max=254)
    return lo.long(), lo.long()+1, x-lo

def soft_hist(
    x:Tensor, # (B,1,H,W) grey values 0..255
)->Tensor: # (B,256) float64, each row sums to 1
    "Histogram with linear binning: differentiable in the grey values"
    lo, hi, t = _soft_bins(x)
    h = torch.zeros(len(lo), 256, dtype=t.dtype, device=t.device)
    return h.scatter_add(1, lo, 1-t).scatter_add(1, hi, t)/lo.shape[1]

def soft_joint_hist(
    x:Tensor, y:Tensor, # (B,1,H,W) grey values 0..255
)->Tensor: # (B,256,256) float64
    "Joint histogram with linear binning along both axes"
    (i0, i1, s), (j0, j1, t) = _soft_bins(x), _soft_bins(y)
    h = torch.zeros(len(s), 65536, dtype=s.dtype, device=s.device)
    for i, p in ((i0, 1-s), (i1, s)):
        for j, q in ((j0, 1-t), (j1, t)): h = h.scatter_add(1, i*256+j, p*q)
    return h.view(-1, 256, 256)/s.shape[1]

#| export
def _entropy(
    p:Tensor, # (B,...) probabilities
    base:float=2., # of the logarithm
)->Tensor: # (B,)
    "Entropy of each distribution, with 0 log 0 = 0"
    return -(p*p.clamp_min(1e-30).log()).flatten(1).sum(1)/math.log(base)+0.

#| export
@metric('EN', better='higher', range='0..8 bits', paper='Roberts 2008', grad=('soft',),
        variants=dict(cdd='8-bit histogram', lt='as cdd', vifb='as cdd', rfn='as cdd', iz='log2(p+1e-7)', soft='linear binning, differentiable'))
def en(
    fused:Tensor, a:Tensor=None, b:Tensor=None, # (B,1,H,W) image in [0, data_range]; the sources do not matter
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `cdd` (also `lt`, `vifb`, `rfn`), `iz`, `soft`
)->Tensor: # (B,) bits
    "Entropy of the grey-level histogram (Roberts 2008)"
    if variant=='soft': return _entropy(soft_hist(fused))
    h = hist(fused)
    return -(h*(h.float()+1e-7).log2()).sum(1) if variant=='iz' else _entropy(h)

#| export
@metric('SD', better='higher', range='0..127.5 grey levels', paper='Rao 1997', grad=True,
        variants=dict(cdd='divisor n', lt='as cdd', vifb='as cdd', iz='as cdd', rfn='values 0..1 and no division by n'))
def sd(
    fused:Tensor, a:Tensor=None, b:Tensor=None, # (B,1,H,W) image in [0, data_range]; the sources do not matter
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `cdd` (also `lt`, `vifb`, `iz`), `rfn`
)->Tensor: # (B,) grey levels of 0..255
    "Standard deviation with divisor n (Rao 1997)"
    ss = (fused-fused.mean((1, 2, 3), keepdim=True)).square()
    return _safe_sqrt(ss.sum((1, 2, 3)))/255 if variant=='rfn' else _safe_sqrt(ss.mean((1, 2, 3)))

#| export
@metric('SF', better='higher', range='0..361 grey levels', paper='Eskicioglu & Fisher 1995', grad=True,
        variants=dict(cdd='mean over the differences', lt='as cdd', iz='as cdd', vifb='sums divided by the number of pixels'))
def sf(
    fused:Tensor, a:Tensor=None, b:Tensor=None, # (B,1,H,W) image in [0, data_range]; the sources do not matter
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `cdd` (also `lt`, `iz`), `vifb`
)->Tensor: # (B,) grey levels of 0..255
    "Spatial frequency: root mean squared neighbour difference (Eskicioglu & Fisher 1995)"
    n = fused[0].numel()
    dx, dy = fused.diff(dim=-1).square().sum((1, 2, 3)), fused.diff(dim=-2).square().sum((1, 2, 3))
    H, W = fused.shape[-2:]
    return _safe_sqrt(dx/n+dy/n if variant=='vifb' else dx/max(H*(W-1), 1)+dy/max((H-1)*W, 1))

#| export
@metric('AG', better='higher', range='0..255 grey levels', paper='Cui 2015', grad=True,
        variants=dict(cdd='mean over all pixels', iz='as cdd', lt='sum divided by (H-1)(W-1)', vifb='as lt'))
def ag(
    fused:Tensor, a:Tensor=None, b:Tensor=None, # (B,1,H,W) image in [0, data_range]; the sources do not matter
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `cdd` (also `iz`), `lt` (also `vifb`)
)->Tensor: # (B,) grey levels of 0..255 a pixel
    "Average gradient by central differences (Cui 2015)"
    gy, gx = torch.gradient(fused, dim=(-2, -1))
    s = _safe_sqrt((gx.square()+gy.square())/2).sum((1, 2, 3))
    H, W = fused.shape[-2:]
    return s/((H-1)*(W-1) if variant in ('lt', 'vifb') else H*W)

#| export
@metric('EI', better='higher', range='0..1140 (Sobel units)', paper='Rajalingam & Priya 2018', grad=True,
        variants=dict(vifb='border replicated', iz='border zero-padded'))
def ei(
    fused:Tensor, a:Tensor=None, b:Tensor=None, # (B,1,H,W) image in [0, data_range]; the sources do not matter
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `vifb`, `iz`
)->Tensor: # (B,) Sobel units: 8 times the slope in grey levels a pixel
    "Edge intensity: mean Sobel magnitude (Rajalingam & Priya 2018)"
    x, y = _sobel(fused, 'same' if variant=='iz' else 'replicate')
    return _safe_sqrt(x.square()+y.square()).mean((1, 2, 3))

#| export
def _mutual_information(
    x:Tensor, y:Tensor, # (B,1,H,W) grey values 0..255
    base:float=2., # of the logarithm
    joint=joint_hist, # how to count
)->tuple: # mutual information, entropy of x, entropy of y; each (B,)
    "Mutual information of two images from their joint histogram, never negative"
    p = joint(x, y)
    hx, hy = _entropy(p.sum(2), base), _entropy(p.sum(1), base)
    return (hx+hy-_entropy(p, base)).clamp_min(0.), hx, hy

#| export
@metric('MI', better='higher', range='0..2 H(F)', paper='Qu 2002', grad=('soft',),
        variants=dict(bits='bits, sum of both sources', iz='as bits', cdd='nats', vifb='nats, every image stretched to 0..255',
                      lt='bits, joint histogram saturated at 254', soft='bits, linear binning, differentiable'))
def mi(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `bits` (also `iz`), `cdd`, `vifb`, `lt`, `soft`
)->Tensor: # (B,) bits, or nats for `cdd` and `vifb`
    "Mutual information of the fused image with each source, summed (Qu 2002)"
    if variant=='vifb': fused, a, b = map(_stretch, (fused, a, b))
    base, joint = math.e if variant in ('cdd', 'vifb') else 2., soft_joint_hist if variant=='soft' else joint_hist
    if variant=='lt':
        f = _entropy(hist(fused))
        return sum(f+_entropy(hist(x))-_entropy(joint_hist(fused.clamp(max=254), x.clamp(max=254))) for x in (a, b))
    return sum(_mutual_information(fused, x, base, joint)[0] for x in (a, b))

#| export
@metric('NMI', better='higher', range='0..2', paper='Hossny 2008',
        variants=dict(zl_QMI='stretched images, Hossny normalisation', iz='2 MI/(H(A)+H(B)), not Hossny'))
def nmi(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `zl_QMI`, `iz`
)->Tensor: # (B,)
    "Normalised mutual information (Hossny 2008)"
    if variant=='iz':
        (ia, _, ha), (ib, _, hb) = (_mutual_information(fused, x) for x in (a, b))
        return _safe_div(2*(ia+ib), ha+hb)
    fused, a, b = map(_stretch, (fused, a, b))
    return sum(_safe_div(2*i, hf+hx) for i, hf, hx in (_mutual_information(fused, x) for x in (a, b)))

#| export
@metric('CE', better='lower', range='unbounded, 0 for equal histograms', paper='Bulanon 2009',
        variants=dict(vifb='truncated KL divergence in bits, mean of both sources', mefb='as vifb'))
def ce(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `vifb` (also `mefb`)
)->Tensor: # (B,) bits
    "Cross entropy of the grey-level histograms, mean over the sources (Bulanon 2009)"
    f = hist(fused)
    def term(h): return torch.where((h>0)&(f>0), h*(h.clamp_min(1e-30)/f.clamp_min(1e-30)).log2(), 0.).sum(1)
    return (term(hist(a))+term(hist(b)))/2

#| export
@metric('QNCIE', better='higher', range='0.802..1', paper='Wang 2008', grad=('iz',),
        variants=dict(zl='mutual information over 8 bits, stretched images', mefb='as zl', iz='Pearson correlation instead'))
def qncie(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `zl` (also `mefb`), `iz`
)->Tensor: # (B,)
    "Nonlinear correlation information entropy of the three images (Wang 2008)"
    if variant=='iz': ab, af, bf = (_corr(x, y).double() for x, y in ((a, b), (a, fused), (b, fused)))
    else:
        fused, a, b = map(_stretch, (fused, a, b))
        ab, af, bf = (_mutual_information(x, y)[0]/8 for x, y in ((a, b), (a, fused), (b, fused)))
    one = torch.ones_like(ab)
    p = torch.linalg.eigvalsh(torch.stack([one, ab, af, ab, one, bf, af, bf, one], 1).view(-1, 3, 3)).clamp_min(0.)/3
    return 1-_entropy(p, 256.)

#| export
def _corr(
    x:Tensor, y:Tensor, # (B,1,H,W)
)->Tensor: # (B,) Pearson correlation; 0 when either image is constant (up to rounding)
    "Pearson correlation over all pixels"
    x, y = (t-t.mean((1, 2, 3), keepdim=True) for t in (x, y))
    xx, yy, xy = (t.mean((1, 2, 3)) for t in (x*x, y*y, x*y))
    flat = (1024*torch.finfo(x.dtype).eps)**2
    return torch.where((xx>flat)&(yy>flat), xy/_safe_sqrt(torch.where((xx>flat)&(yy>flat), xx*yy, 1.)), 0.)

#| export
@lru_cache(None)
def meyer_taps(
    half:int=50, # taps on each side of the middle
    grid:int=4096, # frequencies in the quadrature
)->Tensor: # (2 half + 2,) float64 low-pass taps, sum sqrt(2); the last one is 0
    "Discrete Meyer low-pass filter: inverse Fourier integral of the wavelet's definition (Meyer 1990, Daubechies 1992)"
    w = 2*math.pi*(torch.arange(grid, dtype=torch.float64)/grid-.5)
    x = (3*w.abs()/math.pi-1).clamp(0, 1)
    response = torch.cos(math.pi/2*x**4*(35-84*x+70*x**2-20*x**3))
    k = torch.arange(-half, half+1, dtype=torch.float64)
    taps = (response*torch.cos(k[:, None]*w)).mean(1)
    return F.pad(taps*2**.5/taps.sum(), (0, 1))

#| export
def _dwt_matrix(
    n:int, # length of the axis
    taps:Tensor, # (m,) synthesis filter
)->Tensor: # ((n+m-1)//2, n)
    "One level of a wavelet analysis along one axis, half-sample symmetric extension, as a matrix"
    m, rows = len(taps), (n+len(taps)-1)//2
    src = (2*torch.arange(rows)[:, None]+torch.arange(m)+2-m).remainder(2*n)
    src = torch.where(src<n, src, 2*n-1-src)
    return torch.zeros(rows, n, dtype=taps.dtype).scatter_add(1, src, taps.expand(rows, m))

#| export
def _wavelet_feature(
    x:Tensor, # (B,1,H,W) float64
)->Tensor: # (B,1,H',W') bands [[cA,cH],[cV,cD]], scaled to [0,1]
    "One-level discrete Meyer transform of each image"
    lo = meyer_taps()
    hi = lo.flip(0)*torch.tensor([1., -1.]).repeat(len(lo)//2)
    (ly, hy), (lx, hx) = ([_dwt_matrix(n, t).to(x.device) for t in (lo, hi)] for n in x.shape[-2:])
    c = torch.cat([torch.cat([ly@x@lx.T, hy@x@lx.T], -1), torch.cat([ly@x@hx.T, hy@x@hx.T], -1)], -2)
    low, high = c.amin((1, 2, 3), keepdim=True), c.amax((1, 2, 3), keepdim=True)
    return _safe_div(c-low, (high-low).expand_as(c))

#| export
def _fmi_feature(
    x:Tensor, # (B,1,H,W) grey values
    feature:str, # 'pixel', 'gradient', 'dct' or 'w_dmey102'
)->Tensor: # (B,1,H',W') float64 feature map
    "Feature map of whole images for FMI"
    x = x.double()
    if feature=='pixel': return x
    if feature=='gradient': return torch.gradient(x, dim=-1)[0]
    if feature=='w_dmey102': return _wavelet_feature(x)
    def dct(n):
        k = torch.arange(n, dtype=x.dtype, device=x.device)
        c = torch.cos(math.pi/n*(k+.5)*k[:, None])*(2/n)**.5
        return torch.cat([c[:1]/2**.5, c[1:]])
    return dct(x.shape[-2]) @ x @ dct(x.shape[-1]).T

#| export
def _coupling(
    r:Tensor, p:Tensor, # (9,N) densities
)->tuple: # lengths of the 17 steps of the staircase, and r_i p_j and (i+1)(j+1) at each; (17,N)
    "Monotone coupling of two densities: the second difference of min(R_i, P_j), entry by entry along its staircase"
    R, P, t = r.cumsum(0), p.cumsum(0), torch.zeros_like(r[:1])
    i, j, steps = torch.zeros_like(t, dtype=torch.long), torch.zeros_like(t, dtype=torch.long), []
    for _ in range(17):
        Ri, Pj = R.gather(0, i), P.gather(0, j)
        upto = torch.maximum(torch.minimum(Ri, Pj), t)
        steps.append((upto-t, r.gather(0, i)*p.gather(0, j), ((i+1)*(j+1)).to(r.dtype)))
        t, i, j = upto, (i+(Ri<=Pj)).clamp_max(8), (j+(Pj<=Ri)).clamp_max(8)
    return tuple(map(torch.cat, zip(*steps)))

#| export
def _fmi_score(
    x:Tensor, f:Tensor, # (9,N) windows of the source and of the fused feature map
)->Tensor: # (N,) normalised mutual information of each window
    "The window score of FMI (Haghighat & Razian 2014), without the rules for identical and flat windows"
    def density(v):
        lo, hi = v.amin(0), v.amax(0)
        v = torch.where(hi>lo, (v-lo)/torch.where(hi>lo, hi-lo, 1.), 1.)
        return v/v.sum(0), hi<=lo
    def xlogx(t): return t*t.abs().clamp_min(1e-300).log2()
    (p, flat_p), (r, flat_r) = density(x), density(f)
    k = torch.arange(1., 10, dtype=p.dtype, device=p.device)[:, None]
    dp, dr = p-1/9, r-1/9
    c = torch.where(flat_p|flat_r, 0., _safe_div((dp*dr).sum(0), (dp.square().sum(0)*dr.square().sum(0)).sqrt()))
    p = torch.where(c<0, p.flip(0), p)
    (mp, vp), (mr, vr) = (((k*t).sum(0), ((k*k*t).sum(0)-(k*t).sum(0)**2).clamp_min(0)) for t in (p, r))
    d, rp, ij = _coupling(r, p)
    phi = _safe_div(c.abs()*(vp*vr).sqrt(), (d*ij).sum(0)-mr*mp)
    hp, hr, rest = -xlogx(p).sum(0), -xlogx(r).sum(0), (1-phi)*rp
    hj = (1-phi)*(hp+hr)-xlogx(1-phi)-(xlogx(phi*d+rest)-xlogx(rest)).sum(0)
    return _safe_div(2*(hp+hr-hj), hp+hr)

#| export
def _fmi_map(
    fused:Tensor, x:Tensor, # (B,1,H,W) feature maps, float64
    piece:int=4096, # windows treated at a time
)->Tensor: # (B,1,H-2,W-2) score of each 3 x 3 window
    "FMI window scores of one source; identical windows and pairs of flat windows score 1"
    H, W = fused.shape[-2:]
    def windows(t): return torch.stack([t[..., i:H-2+i, j:W-2+j] for j in range(3) for i in range(3)]).flatten(1) # columns first
    wx, wf = windows(x), windows(fused)
    one = (wx==wf).all(0)|((wx.amax(0)==wx.amin(0))&(wf.amax(0)==wf.amin(0)))
    q = torch.ones_like(wx[0])
    if not one.all():
        q[~one] = torch.cat([_fmi_score(u, v) for u, v in zip(wx[:, ~one].split(piece, 1), wf[:, ~one].split(piece, 1))])
    return q.view(-1, 1, H-2, W-2)

#| export
@metric('FMI', better='higher', range='about 0..1', paper='Haghighat 2011, Haghighat & Razian 2014',
        variants=dict(pixel='raw grey values', gradient='horizontal central differences', dct='orthonormal DCT of the whole image',
                      w_dmey102='one-level 102-tap discrete Meyer transform', w='as w_dmey102'))
def fmi(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range], sides of 3 or more
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # feature: `pixel`, `gradient`, `dct`, `w_dmey102` (also `w`)
)->Tensor: # (B,)
    "Feature mutual information in 3 x 3 windows (Haghighat 2011)"
    if min(fused.shape[-2:])<3: raise ValueError(f'FMI: image of {tuple(fused.shape[-2:])} is smaller than the 3x3 window')
    f, xa, xb = (_fmi_feature(t, 'w_dmey102' if variant=='w' else variant) for t in (fused, a, b))
    return (_fmi_map(f, xa)+_fmi_map(f, xb)).mean((1, 2, 3))/2

#| export
@metric('SCD', better='higher', range='-2..2', paper='Aslantas & Bendes 2015', grad=True,
        variants=dict(cdd='as the paper', lt='as cdd', rfn='as cdd', iz='as cdd'))
def scd(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `cdd` (also `lt`, `rfn`, `iz`)
)->Tensor: # (B,)
    "Sum of the correlations of differences (Aslantas & Bendes 2015)"
    return _corr(fused-b, a)+_corr(fused-a, b)

#| export
@metric('CC', better='higher', range='-1..1', paper='Pearson; mean over the sources', grad=True,
        variants=dict(cdd='mean of both correlations', lt='as cdd', iz='as cdd'))
def cc(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `cdd` (also `lt`, `iz`)
)->Tensor: # (B,)
    "Mean Pearson correlation of the fused image with its sources"
    return (_corr(a, fused)+_corr(b, fused))/2

#| export
@metric('MSE', better='lower', range='0..65025', paper='mean over the sources', grad=True,
        variants=dict(cdd='grey values 0..255', lt='grey values 0..1', iz='as lt'))
def mse(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `cdd`, `lt` (also `iz`)
)->Tensor: # (B,) squared grey levels
    "Mean squared error, mean over the two sources"
    e = ((a-fused).square().mean((1, 2, 3))+(b-fused).square().mean((1, 2, 3)))/2
    return e if variant=='cdd' else e/65025

#| export
@metric('RMSE', better='lower', range='0..255 grey levels', paper='Jagalingam & Hegde 2015', grad=True,
        variants=dict(rmse='mean of the two roots, 0..255', vifb='root taken before dividing by n: RMSE/sqrt(n)'))
def rmse(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `rmse`, `vifb`
)->Tensor: # (B,) grey levels
    "Root mean squared error, mean over the two sources (Jagalingam & Hegde 2015)"
    e = sum(_safe_sqrt((x-fused).square().mean((1, 2, 3))) for x in (a, b))/2
    return e/fused[0].numel()**.5 if variant=='vifb' else e

#| export
@metric('PSNR', better='higher', range='0..100 dB', paper='Jagalingam & Hegde 2015', grad=True,
        variants=dict(psnr='peak 255, MSE averaged over the sources', cdd='peak max(F)'))
def psnr(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) fused image and its two sources, in [0, data_range]
    data_range:float=1., # value of white: 1. or 255.
    variant:str='default', # `psnr`, `cdd`
)->Tensor: # (B,) dB
    "Peak signal-to-noise ratio against both sources (Jagalingam & Hegde 2015)"
    e = ((a-fused).square().mean((1, 2, 3))+(b-fused).square().mean((1, 2, 3)))/2
    peak = fused.amax((1, 2, 3)).clamp_min(1.) if variant=='cdd' else torch.full_like(e, 255.)
    return 10*(peak**2/torch.maximum(e, 1e-10*peak**2)).log10()

#| export
def _floor(x:Tensor)->float:
    "A positive number so small that it changes no value, and so large that 1/floor**2 does not overflow"
    return torch.finfo(x.dtype).tiny**.4

def _modulus(
    x:Tensor, y:Tensor, # two components
)->Tensor: # sqrt(x^2+y^2), its gradient 0 where both components vanish
    "Length of a vector"
    z = x*x+y*y
    return z.clamp(min=torch.finfo(z.dtype).tiny).sqrt()*z.sign()

def _arctan(
    y:Tensor, x:Tensor, # two components
)->Tensor: # arctan(y/x) in [-pi/2, pi/2]; +-pi/2 for x=0, 0 where both are 0
    "Orientation of an edge"
    return torch.atan(y/torch.copysign(x.abs().clamp(min=_floor(x)), x))

def _min_over_max(
    x:Tensor, y:Tensor, # non-negative
)->Tensor: # 0..1, 0 where both are 0
    "Ratio of the smaller to the larger"
    return torch.minimum(x, y)/torch.maximum(x, y).clamp(min=_floor(x))

#| export
def _ssim_maps(
    m:SimpleNamespace, # local moments, see `_moments3`
    L:float=255., # data range in the constants
    scale:float=1., # factor on variances: n/(n-1) for the sample covariance
)->tuple: # SSIM maps of a and of b with the fused image, each (B,1,H',W')
    "Structural similarity of the fused image with each source, window by window"
    c1, c2, vf = (.01*L)**2, (.03*L)**2, scale*m.vf
    return tuple(_ssim_map(mx, m.mf, scale*vx, vf, scale*cxf, c1, c2) for mx, vx, cxf in ((m.ma, m.va, m.caf), (m.mb, m.vb, m.cbf)))

#| export
def _moments_by(
    filt, # function of a stack of images: the local mean
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W)
)->SimpleNamespace: # as `_moments3`
    "Local moments of a fused image and its sources for any way of taking local means"
    mf, ma, mb, ff, aa, bb, af, bf = filt(torch.cat([fused, a, b, fused*fused, a*a, b*b, a*fused, b*fused])).split(len(a))
    return SimpleNamespace(mf=mf, ma=ma, mb=mb, vf=ff-mf*mf, va=aa-ma*ma, vb=bb-mb*mb, caf=af-ma*mf, cbf=bf-mb*mf)

def _box_moments(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W), 0..255
)->SimpleNamespace: # as `_moments3`, float64
    "Local moments in the 7 x 7 uniform window; exact sums for integer grey values of any dtype"
    x = (fused, a, b)
    if not all(bool((t==t.round()).all()) for t in x): x = tuple(t.double() for t in x)
    return _moments_by(lambda t: _filter(t, torch.ones(7)).double()/49, *x)

#| export
@metric('SSIM', 'higher', '-1..1 (mean of sources); sums -2..2', 'Wang et al. 2004',
        dict(mean='Gaussian window, range 255, mean of both sources', vifb='the same, sum of both sources',
             cdd='7x7 uniform window, range 2 on 0..255 data, sum', lt='Gaussian window, replicated border, range 1 on 0..255 data, mean',
             skimage='7x7 uniform window, sample covariance, range 255, mean'), grad=True)
def ssim(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 11 x 11
    data_range:float=1., # value of white
    variant:str='default', # mean, vifb, cdd, lt, skimage
)->Tensor: # (B,)
    "Structural similarity of the fused image with both sources (Wang et al. 2004)"
    w = gaussian_window(11, 1.5)
    if variant=='lt': maps = _ssim_maps(_moments3(*(t.double() for t in (fused, a, b)), w, 'replicate'), L=1.)
    elif variant in ('cdd', 'skimage'): maps = _ssim_maps(_box_moments(fused, a, b), L=2. if variant=='cdd' else 255., scale=49/48)
    else: maps = _ssim_maps(_moments3(fused, a, b, w))
    total = maps[0].mean((1, 2, 3))+maps[1].mean((1, 2, 3))
    return total if variant in ('cdd', 'vifb') else total/2

#| export
MSSSIM_WEIGHTS = (.0448, .2856, .3001, .2363, .1333)  # Wang, Simoncelli and Bovik 2003

def _power(
    x:Tensor, # any shape
    p:float, # exponent between 0 and 1
)->Tensor: # max(x,0)**p
    "Power of the positive part; the gradient at 0 and below is 0 instead of infinite"
    return torch.where(x>0, torch.where(x>0, x, 1.)**p, 0.)

def _multiscale(
    x:Tensor, y:Tensor, # (B,1,H,W), 0..255
    w:Tensor, # (11,) window
    L:float, # data range in the constants
)->Tensor: # (B,)
    "Multi-scale SSIM of two images"
    out, c1, c2 = 1., (.01*L)**2, (.03*L)**2
    for j, p in enumerate(MSSSIM_WEIGHTS):
        if j: x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        mx, my, vx, vy, cxy = _moments(x, y, w)
        s = (2*cxy+c2)/(vx+vy+c2)
        if j==4: s = s*(2*mx*my+c1)/(mx*mx+my*my+c1)
        out = out*_power(s.mean((1, 2, 3)), p)
    return out

#| export
@metric('MS-SSIM', 'higher', '0..1 (mean of sources); sums 0..2', 'Wang, Simoncelli and Bovik 2003',
        dict(mean='range 255, mean of both sources', iz='range 1 on 0..255 data, single-precision window, sum'), grad=True)
def ms_ssim(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 176 x 176
    data_range:float=1., # value of white
    variant:str='default', # mean, iz
)->Tensor: # (B,)
    "Multi-scale structural similarity with both sources (Wang, Simoncelli and Bovik 2003)"
    if min(fused.shape[-2:])<176: raise ValueError(f'MS-SSIM: five scales need at least 176 x 176 pixels, found {tuple(fused.shape[-2:])}')
    w = gaussian_window(11, 1.5)
    if variant=='mean': return (_multiscale(a, fused, w, 255.)+_multiscale(b, fused, w, 255.))/2
    w = torch.exp(-(torch.arange(11, dtype=torch.float32)-5)**2/(2*1.5**2))
    w, fused, a, b = (w/w.sum()).double(), fused.double(), a.double(), b.double()
    return _multiscale(a, fused, w, 1.)+_multiscale(b, fused, w, 1.)

#| export
def _mef_alphas(
    a:Tensor, b:Tensor, # (B,1,H,W) float64, 0..255
)->tuple: # alpha_A, alpha_B: weight maps of the two mean-free patches in the ideal patch
    "Weights that compose the ideal 11 x 11 patch from the patches of two sources (Ma, Zeng and Wang 2015)"
    eps = 2.**-52
    _, _, va, vb, cab = _moments(a, b, torch.full((11,), 1/11, dtype=torch.float64))
    flat = lambda v: torch.where(v>1e-8, 121*v, 0.)        # squared norm of a mean-free patch; rounding noise counts as flat
    na, nb, ns = flat(va).sqrt(), flat(vb).sqrt(), flat(va+vb+2*cab).sqrt()
    R = ((ns+eps)/(na+nb+eps)).clamp(max=1-eps)
    p = torch.tan(math.pi*R/2).clamp(max=10.)
    ea, eb = na+.001, nb+.001
    wa, wb = (ea/11)**p+eps, (eb/11)**p+eps
    wa, wb = wa/((wa+wb)*ea), wb/((wa+wb)*eb)
    norm = flat(wa*wa*va+wb*wb*vb+2*wa*wb*cab).sqrt()
    scale = torch.where(norm>0, torch.maximum(ea, eb)/torch.where(norm>0, norm, 1.), 1.)
    return wa*scale, wb*scale

#| export
def _mef_map(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) float64, 0..255
)->Tensor: # (B,1,H-10,W-10) local structure score
    "Agreement of the fused image with the ideal patch, Gaussian-weighted 11 x 11"
    (p, q), m, C = _mef_alphas(a, b), _moments3(fused, a, b, gaussian_window(11, 1.5), ab=True), (.03*255)**2
    var, cov = p*p*m.va+q*q*m.vb+2*p*q*m.cab, p*m.caf+q*m.cbf
    return (2*cov+C)/(var+m.vf+C)

#| export
@metric('MEF-SSIM', 'higher', '-1..1, in practice 0..1', 'Ma, Zeng and Wang 2015',
        dict(lt_ms='three scales', lt_scale1='finest scale alone'), grad=True)
def mef_ssim(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 44 x 44 (11 x 11 for one scale)
    data_range:float=1., # value of white
    variant:str='default', # lt_ms, lt_scale1
)->Tensor: # (B,)
    "Structural similarity with the ideal composition of both sources (Ma, Zeng and Wang 2015)"
    x, out = [t.double() for t in (fused, a, b)], 1.
    if variant=='lt_scale1': return _mef_map(*x).mean((1, 2, 3))
    for j, p in enumerate(MSSSIM_WEIGHTS[:3]):
        if j: x = [F.avg_pool2d(_pad(t, (0, t.shape[-2]%2), (0, t.shape[-1]%2), 'symmetric'), 2) for t in x]
        out = out*_power(_mef_map(*x).mean((1, 2, 3)), p/sum(MSSSIM_WEIGHTS[:3]))
    return out

#| export
def _piella(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W), 0..255
)->tuple: # similarity q and saliency c, each (B,1,H-10,W-10)
    "Similarity with the locally stronger source, and the weight of each window (Piella and Heijmans 2003)"
    m, c = _moments3(fused, a, b, gaussian_window(11, 1.5)), ((.01*255)**2, (.03*255)**2)
    flat = .5*(m.va+m.vb==0)
    va, vb = m.va+flat, m.vb+flat
    lam = va/(va+vb)
    return lam*_ssim_map(m.ma, m.mf, m.va, m.vf, m.caf, *c)+(1-lam)*_ssim_map(m.mb, m.mf, m.vb, m.vf, m.cbf, *c), torch.maximum(va, vb)

def _qw(fused:Tensor, a:Tensor, b:Tensor)->Tensor:
    "Saliency-weighted mean of Piella's similarity, (B,)"
    q, c = _piella(fused, a, b)
    return (q*c).sum((1, 2, 3))/c.sum((1, 2, 3))

#| export
@metric('QS', 'higher', '-1..1', 'Piella and Heijmans 2003', dict(zl='plain mean over windows'), grad=True)
def qs(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 11 x 11
    data_range:float=1., # value of white
    variant:str='default', # zl
)->Tensor: # (B,)
    "Piella's similarity with the locally stronger source (Piella and Heijmans 2003)"
    return _piella(fused, a, b)[0].mean((1, 2, 3))

@metric('QW', 'higher', '-1..1', 'Piella and Heijmans 2003', dict(zl='weighted by the larger local variance; also called FQI'), grad=True)
def qw(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 11 x 11
    data_range:float=1., # value of white
    variant:str='default', # zl
)->Tensor: # (B,)
    "Saliency-weighted similarity, the fusion quality index FQI (Piella and Heijmans 2003)"
    return _qw(fused, a, b)

#| export
def _prewitt(
    x:Tensor, # (B,1,H,W)
)->Tensor: # (B,1,H,W) Prewitt gradient magnitude, zero padded
    "Edge image"
    p = _pad(x, (1, 1), (1, 1), 'same')
    d, s = p[..., :-2]-p[..., 2:], p[..., :-2]+p[..., 1:-1]+p[..., 2:]
    return _modulus(d[..., :-2, :]+d[..., 1:-1, :]+d[..., 2:, :], s[..., :-2, :]-s[..., 2:, :])

@metric('QE', 'higher', '-1..1', 'Piella and Heijmans 2003',
        dict(composed='QW of the images times QW of their edge images', mefb_edge="the edge factor alone, MEFB's 'Qw'"), grad=True)
def qe(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 11 x 11
    data_range:float=1., # value of white
    variant:str='default', # composed, mefb_edge
)->Tensor: # (B,)
    "Edge-dependent fusion quality (Piella and Heijmans 2003, alpha = 1)"
    edge = _qw(*(_prewitt(t) for t in (fused, a, b)))
    return edge if variant=='mefb_edge' else edge*_qw(fused, a, b)

#| export
def _flat_ssim(
    mx:Tensor, my:Tensor, vx:Tensor, vy:Tensor, cxy:Tensor, # local moments
)->Tensor: # similarity without stabilising constants; a luminance term alone where both windows are flat
    "Structural similarity with the published constants of 2e-16, exact zeros for rounding noise"
    return _ssim_map(mx, my, vx, vy, cxy, 2e-16, 2e-16)

def _matlab_mean(
    x:Tensor, # (B,1,H,W) float64
)->Tensor: # (B,1,H-6,W-6)
    "7 x 7 Gaussian mean, every addition in the order of MATLAB's conv2"
    i = torch.arange(-3, 4, dtype=x.dtype, device=x.device)
    w = torch.exp(-(i[:, None]**2+i**2)/(2*1.5**2))
    w, (h, n) = (w/sum(w.flatten().tolist())).tolist(), (t-6 for t in x.shape[-2:])
    return sum(w[r][c]*x[..., r:r+h, c:c+n] for c in range(6, -1, -1) for r in range(6, -1, -1))

def _small_moments(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W), 0..255
    clean:bool=True, # set variances below 1e-8, and the covariances of such windows, to exactly zero
)->SimpleNamespace: # as `_moments3`, float64, 7 x 7 Gaussian window
    "Local moments for the similarities without constants"
    f, a, b = (t.double() for t in (fused, a, b))
    if not clean: return _moments_by(_matlab_mean, f, a, b)
    m = _moments3(f, a, b, gaussian_window(7, 1.5), ab=True)
    live = {k: getattr(m, f'v{k}')>1e-8 for k in 'fab'}
    for k in 'fab': setattr(m, f'v{k}', torch.where(live[k], getattr(m, f'v{k}'), 0.))
    for x, y in ('af', 'bf', 'ab'): setattr(m, f'c{x}{y}', torch.where(live[x]&live[y], getattr(m, f'c{x}{y}'), 0.))
    return m

#| export
def _mean_where(
    x:Tensor, ok:Tensor, # (B,1,H,W) values and which of them count
)->Tensor: # (B,), 0 where none counts
    "Mean over the windows that count"
    return torch.where(ok, x, 0.).sum((1, 2, 3))/ok.sum((1, 2, 3)).clamp(min=1)

@metric('QY', 'higher', '-1..1', 'Yang et al. 2008', dict(mefb='windows flat in both sources left out; 0 if there is no other'), grad=True)
def qy(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 7 x 7
    data_range:float=1., # value of white
    variant:str='default', # mefb
)->Tensor: # (B,)
    "Similarity with both sources where they agree, with the better one elsewhere (Yang et al. 2008)"
    m = _small_moments(fused, a, b)
    s0, sa, sb = (_flat_ssim(*t) for t in ((m.ma, m.mb, m.va, m.vb, m.cab), (m.ma, m.mf, m.va, m.vf, m.caf), (m.mb, m.mf, m.vb, m.vf, m.cbf)))
    lam = _safe_div(m.va, m.va+m.vb)
    return _mean_where(torch.where(s0>=.75, lam*sa+(1-lam)*sb, torch.maximum(sa, sb)), m.va+m.vb>0)

#| export
@metric('QC', 'higher', '-1..1', 'Cvejic et al. 2006', dict(clean='weight clipped to 0..1; windows without covariance left out, 0 if there is no other',
        mefb='value 0 or 1 where the weight leaves 0..1, rounding errors as published'), grad=('clean',))
def qc(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 7 x 7
    data_range:float=1., # value of white
    variant:str='default', # clean, mefb
)->Tensor: # (B,)
    "Similarity weighted by the covariance with each source (Cvejic et al. 2006)"
    m = _small_moments(fused, a, b, variant=='clean')
    sa, sb = _flat_ssim(m.ma, m.mf, m.va, m.vf, m.caf), _flat_ssim(m.mb, m.mf, m.vb, m.vf, m.cbf)
    s = _safe_div(m.caf, m.caf+m.cbf)
    q = s.clamp(0, 1)*sa+(1-s.clamp(0, 1))*sb
    if variant=='mefb': q = torch.where(s<0, 0., torch.where(s>1, 1., q))
    return _mean_where(q, m.caf+m.cbf!=0)

#| export
def _edges(
    x:Tensor, # (B,1,H,W), 0..255
)->tuple: # strength and orientation, each (B,1,H,W)
    "Sobel edges as Qabf uses them: zero-padded border, orientation +pi/2 wherever the horizontal response is exactly 0"
    sx, sy = _sobel(x)
    some = sx.sign()**2
    return _modulus(sx, sy), (1-some)*math.pi/2-some*_arctan(sy, sx)

#| export
def _preserved(
    gx:Tensor, ax:Tensor, gf:Tensor, af:Tensor, # edge strength and orientation of a source and of the fused image
    tie:float|None=None, # G is tie*gf where the strengths are equal; None is the sound value 1
)->Tensor: # share of each edge that is preserved, 0..0.987
    "Edge preservation at each pixel (Xydeas and Petrovic 2000)"
    G = _min_over_max(gx, gf)
    if tie is not None: G = G+(1-(gx-gf).sign()**2)*(tie*gf-G)
    t = 1-(ax-af).abs()/(math.pi/2)
    return .9994*.9879*torch.sigmoid(15*(G-.5))*torch.sigmoid(22*(t-.8))

@metric('Qabf', 'higher', '0..0.975 (0..0.987 by the constants)', 'Xydeas and Petrovic 2000',
        dict(sound='G = 1 where the strengths are equal', cdd='G = fused strength where they are equal', lt='as cdd', vifb='as cdd, times 255'), grad=True)
def qabf(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # sound, cdd, lt, vifb
)->Tensor: # (B,), 0 if neither source has an edge
    "Share of the sources' edges that the fused image preserves (Xydeas and Petrovic 2000)"
    tie = dict(sound=None, vifb=255.).get(variant, 1.)
    (ga, aa), (gb, ab), ef = _edges(a), _edges(b), _edges(fused)
    q = _preserved(ga, aa, *ef, tie)*ga+_preserved(gb, ab, *ef, tie)*gb
    return _safe_div(q.sum((1, 2, 3)), (ga+gb).sum((1, 2, 3)))

#| export
def _qg_quality(
    G:Tensor, # relative strength, 0..1
    ax:Tensor, af:Tensor, # orientations
)->Tensor: # 0..1
    "Edge preservation with the constants of Proc. SPIE 4051:89"
    t = ((ax-af).abs()-math.pi/2).abs()*2/math.pi
    return torch.sigmoid(10*(G-.5))*torch.sigmoid(20*(t-.75))

def _qg_toolbox(
    g:tuple, al:tuple, # strengths and orientations of fused, a, b
)->Tensor: # (B,1,H,W) quality map
    "Per-pixel quality as Liu's toolbox computes it: zero strengths become 1e-5, the fused one after its first use"
    gf, num, den = g[0], 0., 0.
    for gx, ax in zip(g[1:], al[1:]):
        weaker = gx>gf
        gx = torch.where(gx==0, 1e-5, gx)
        r = gf/gx
        gf = torch.where(gf==0, 1e-5, gf)
        num, den = num+_qg_quality(torch.where(weaker, r, gx/gf), ax, al[0])*gx, den+gx
    return num/den

#| export
@metric('QG', 'higher', '0..0.987', 'Xydeas and Petrovic 2000 (SPIE)',
        dict(weighted='mean weighted by edge strength, as in the paper', zl='plain mean over pixels'), grad=True)
def qg(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # weighted, zl
)->Tensor: # (B,); weighted: 0 if neither source has an edge
    "Gradient-based fusion quality (Xydeas and Petrovic 2000, Proc. SPIE 4051:89)"
    s = [_sobel(t) for t in (fused, a, b)]
    g, al = [_modulus(*t) for t in s], [_arctan(y, torch.where(x==0, x+1e-5, x)) for x, y in s]
    if variant=='zl': return _qg_toolbox(g, al).mean((1, 2, 3))
    q = [_qg_quality(_min_over_max(gx, g[0]), ax, al[0])*gx for gx, ax in zip(g[1:], al[1:])]
    return _safe_div((q[0]+q[1]).sum((1, 2, 3)), (g[1]+g[2]).sum((1, 2, 3)))

#| export
def _petrovic_edges(
    x:Tensor, # (B,1,H,W)
)->tuple: # strength and orientation of Sobel/8 responses, mirrored border
    "Edges for Petrovic's set; column by column, the order of additions that reproduces the published values of 0..1 images"
    p = _pad(x, (1, 1), (1, 1), 'mirror')/8
    t, m, l = p[..., :-2, :], p[..., 1:-1, :], p[..., 2:, :]
    smooth, step = t+2*m+l, l-t
    v, h = smooth[..., 2:]-smooth[..., :-2], step[..., :-2]+2*step[..., 1:-1]+step[..., 2:]
    return _modulus(h, v), _arctan(v, h)

def _petrovic(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W), 0..255
    variant:str, # range255, rfn
)->SimpleNamespace: # preserved, lost, invented: (B,) parts of 1; added: Petrovic's first form of invented; maps of the last three
    "Split the edge information of two sources into preserved, lost and invented"
    x = [t.double() for t in (fused, a, b)]
    if variant=='rfn': x = [t/255 for t in x]
    (gf, af), *sources = (_petrovic_edges(t) for t in x)
    Q, w = [], []
    for g, al in sources:
        G, t = _min_over_max(g, gf), ((al-af).abs()-math.pi/2).abs()*2/math.pi
        Q.append((.9999*.9995*torch.sigmoid(19*(G-.5))*torch.sigmoid(22*(t-.5))).sqrt())
        w.append(torch.where(g>=2, g.clamp(min=2)**1.5, .001))
    above = (gf>sources[0][0])&(gf>sources[1][0])
    W, gone = (w[0]+w[1]).sum((1, 2, 3), keepdim=True), (1-Q[0])*w[0]+(1-Q[1])*w[1]
    maps = dict(preserved=Q[0]*w[0]+Q[1]*w[1], lost=gone*~above, invented=gone*above, added=(2-Q[0]-Q[1])*(w[0]+w[1])*above)
    return SimpleNamespace(**{k: (v/W).sum((1, 2, 3)) for k, v in maps.items()}, maps=maps)

#| export
_PETROVIC = dict(range255='grey values 0..255', rfn='grey values 0..1: all weights 0.001, a mean over pixels')

@metric('Qabf_P', 'higher', '0..1', 'Petrovic and Xydeas 2005', _PETROVIC, grad=True)
def qabf_p(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # range255, rfn
)->Tensor: # (B,)
    "Edge information preserved (Petrovic and Xydeas 2005)"
    return _petrovic(fused, a, b, variant).preserved

@metric('Labf', 'lower', '0..1', 'Petrovic and Xydeas 2005', _PETROVIC, grad=True)
def labf(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # range255, rfn
)->Tensor: # (B,)
    "Edge information lost (Petrovic and Xydeas 2005)"
    return _petrovic(fused, a, b, variant).lost

#| export
@metric('Nabf', 'lower', '0..1', 'Shreyamsha Kumar 2013',
        dict(_PETROVIC, nabf1="Petrovic's first form, NABF1: both sources' losses times both weights"), grad=True)
def nabf(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # range255, rfn, nabf1
)->Tensor: # (B,)
    "Edge information invented by the fusion: artefacts (Shreyamsha Kumar 2013)"
    return _petrovic(fused, a, b, variant).added if variant=='nabf1' else _petrovic(fused, a, b, variant).invented

#| export
def _laplacian(
    x:Tensor, # (B,1,H,W)
)->Tensor: # (B,1,H-2,W-2)
    "Four-neighbour Laplacian inside the image"
    c = x[..., 1:-1, 1:-1]
    return (x[..., 2:, 1:-1]-c)+(x[..., :-2, 1:-1]-c)+(x[..., 1:-1, 2:]-c)+(x[..., 1:-1, :-2]-c)

def _correlation(
    x:Tensor, y:Tensor, # (B,1,H,W)
)->Tensor: # (B,) Pearson correlation, 0 where an image is constant
    "Correlation over all pixels"
    x, y = x-x.mean((1, 2, 3), keepdim=True), y-y.mean((1, 2, 3), keepdim=True)
    n = (x*x).sum((1, 2, 3))*(y*y).sum((1, 2, 3))
    return torch.where(n>0, (x*y).sum((1, 2, 3))/torch.where(n>0, n, 1.).sqrt(), 0.)

@metric('EPI', 'higher', '-1..1', 'Sattar et al. 1997', dict(sattar='mean over the sources'), grad=True)
def epi(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 3 x 3
    data_range:float=1., # value of white
    variant:str='default', # sattar
)->Tensor: # (B,); a constant image has correlation 0
    "Edge preservation index: correlation of Laplacians, mean over both sources (Sattar et al. 1997)"
    if min(fused.shape[-2:])<3: raise ValueError(f'EPI: needs at least 3 x 3 pixels, found {tuple(fused.shape[-2:])}')
    f, a, b = (_laplacian(t.double()) for t in (fused, a, b))
    return (_correlation(a, f)+_correlation(b, f))/2

#| export
def _halve(
    x:Tensor, # (B,1,H,W)
    k:Tensor, # (n,) taps
)->Tensor: # (B,1,~(H-n)/2,~(W-n)/2)
    "Separable 'valid' filter, every second pixel from the first"
    B, n, k = len(x), len(k), k.to(x)
    if x.dtype==torch.float32 and x.device.type=='cpu':
        y = F.conv2d(x.transpose(0, 1), k.view(1, 1, 1, n).expand(B, 1, 1, n), groups=B, stride=(1, 2))
        return F.conv2d(y, k.view(1, 1, n, 1).expand(B, 1, n, 1), groups=B, stride=(2, 1)).transpose(0, 1)
    return _band(k, x.shape[-2])[::2] @ (x @ _band(k, x.shape[-1])[::2].T)

def _vif_scales(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W), 0..255
):
    "Local moments of the three images at VIF's four scales, one after the other"
    if min(fused.shape[-2:])<41: raise ValueError(f'VIF: four scales need at least 41 x 41 pixels, found {tuple(fused.shape[-2:])}')
    for n in (17, 9, 5, 3):
        w = gaussian_window(n, n/5)
        if n<17: fused, a, b = _halve(torch.cat([fused, a, b]), w).split(len(a))
        yield _moments3(fused, a, b, w)

#| export
def _vif_maps(
    vr:Tensor, vd:Tensor, c:Tensor, # variances of reference and distorted image, covariance
    noise:float, # variance of the eye's noise
)->tuple: # gain, information preserved, information available; in nats
    "Gain and information maps of one scale (Sheikh and Bovik 2006)"
    tiny = max(1e-10, 4*torch.finfo(vr.dtype).eps*255**2)
    vr, vd = F.threshold(vr, tiny, 0.), F.threshold(vd, tiny, 0.)
    c = c.clamp(min=0)*vr.sign()*vd.sign()
    g = c/(vr+1e-10)
    rest = (vd-g*c).clamp(min=1e-10)
    return g, torch.log1p(g*g*vr/(rest+noise)), torch.log1p(vr/noise)

#| export
@metric('VIF', 'higher', '0 upwards; about 2 at most without contrast enhancement', 'Sheikh and Bovik 2006',
        dict(cdd='sum of both sources; a constant source counts 1', lt='the same'), grad=True)
def vif(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 41 x 41
    data_range:float=1., # value of white
    variant:str='default', # cdd, lt
)->Tensor: # (B,)
    "Sum of the pixel-domain visual information fidelity of both sources (Sheikh and Bovik 2006)"
    num, den = [0., 0.], [0., 0.]
    for m in _vif_scales(fused, a, b):
        for i, (vr, c) in enumerate(((m.va, m.caf), (m.vb, m.cbf))):
            _, n, d = _vif_maps(vr, m.vf, c, 2.)
            num[i], den[i] = num[i]+n.sum((1, 2, 3)), den[i]+d.sum((1, 2, 3))
    return sum(_safe_div(n, d, empty=1.) for n, d in zip(num, den))

#| export
@metric('VIFF', 'higher', '0 upwards; 1 for equal images', 'Han et al. 2013', dict(mefb='noise 325.125, smaller gain wins'), grad=True)
def viff(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 41 x 41
    data_range:float=1., # value of white
    variant:str='default', # mefb
)->Tensor: # (B,)
    "Visual information fidelity for fusion (Han et al. 2013)"
    out, noise, ln10 = 0., .005*255**2, math.log(10)
    for p, m in zip((1/2.15, 0., .15/2.15, 1/2.15), _vif_scales(fused, a, b)):
        if p==0: continue
        (ga, na, da), (gb, nb, db) = _vif_maps(m.va, m.vf, m.caf, noise), _vif_maps(m.vb, m.vf, m.cbf, noise)
        num, den = (torch.where(ga<gb, x, y)/ln10+1e-7 for x, y in ((na, nb), (da, db)))
        out = out+p*num.sum((1, 2, 3))/den.sum((1, 2, 3))
    return out

#| export
def _radius(
    x:Tensor, # (B,1,H,W), for size and device
    view:float, # the axes -1..1 are scaled by size/view
)->Tensor: # (H,W) float64 in FFT order
    "Radial frequency of each FFT coefficient"
    v, u = (2*torch.fft.fftfreq(n, dtype=torch.float64, device=x.device)*n/view for n in x.shape[-2:])
    return torch.hypot(u[None], v[:, None])

def _masked_contrast(
    x:Tensor, # (B,1,H,W) float64, 0..255
)->Tensor: # (B,1,H,W)
    "Masked local contrast of the filtered image (Chen and Blum 2009)"
    r = _radius(x, 30)
    x = torch.fft.ifft2(torch.fft.fft2(x)*(torch.exp(-(r/15.3870)**2)-.7622*torch.exp(-(r/1.3456)**2))).real
    i = torch.arange(-15, 16, dtype=x.dtype, device=x.device)
    g2, g4 = (torch.exp(-i**2/(2*s*s))/(math.sqrt(2*math.pi)*s) for s in (2, 4))
    wide = _filter(x, g4, 'same')
    c = torch.where(wide!=0, _safe_div(_filter(x, g2, 'same'), wide)-1, 0.).abs()
    return c**3/(c*c+1e-4)

#| export
@metric('QCB', 'higher', '0..1', 'Chen and Blum 2009', dict(zl='images stretched to 0..255; 0 for a constant fused image', vifb='the same'))
def qcb(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # zl, vifb
)->Tensor: # (B,)
    "Contrast preservation through a model of human vision (Chen and Blum 2009)"
    f, a, b = (_masked_contrast(_stretch(t)) for t in (fused, a, b))
    q = lambda c: torch.where(c==f, (f>0).double(), _safe_div(torch.minimum(c, f), torch.maximum(c, f)))
    lam = _safe_div(a*a, a*a+b*b, empty=.5)
    return (lam*q(a)+(1-lam)*q(b)).mean((1, 2, 3))

#| export
def _block_sums(
    x:Tensor, # (B,1,H,W)
)->Tensor: # (B,1,ceil(H/16),ceil(W/16))
    "Sums over disjoint 16 x 16 blocks, zero-padded at the end"
    return F.avg_pool2d(F.pad(x, (0, -x.shape[-1]%16, 0, -x.shape[-2]%16)), 16)*256

@metric('QCV', 'lower', '0 upwards', 'Chen and Varshney 2007', dict(zl='images stretched to 0..255', vifb='the same'))
def qcv(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # zl, vifb
)->Tensor: # (B,); blocks count alike where no source has an edge
    "Perceived error in the salient blocks of the sources (Chen and Varshney 2007)"
    f, *sources = (_stretch(t) for t in (fused, a, b))
    r = .144*_radius(f, 8)
    T = 2.6*(.0192+r)*torch.exp(-r**1.1)
    D = [_block_sums(torch.fft.ifft2(torch.fft.fft2(x-f)*T).real**2)/256 for x in sources]
    s = [_block_sums(_modulus(*_sobel(x))**5) for x in sources]
    s = [t+((s[0]+s[1]).sum((1, 2, 3), keepdim=True)==0) for t in s]
    return (s[0]*D[0]+s[1]*D[1]).sum((1, 2, 3))/(s[0]+s[1]).sum((1, 2, 3))

#| export
@lru_cache(8)
def _log_gabor(
    h:int, w:int, # image size
)->tuple: # radial filters (4,H,W) and angular filters (6,H,W), float64
    "Log-Gabor filter bank of 4 scales and 6 orientations in FFT order (Kovesi 1999)"
    with torch.inference_mode(False):
        y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (h, w))
        rho, th = torch.hypot(x[None], y[:, None]), torch.atan2(-y[:, None].expand(h, w), x[None].expand(h, w))
        low = 1/(1+(rho/.45)**30)
        rho[0, 0] = 1
        radial = torch.stack([torch.exp(-torch.log(rho*3*2.1**s)**2/(2*math.log(.55)**2))*low for s in range(4)])
        radial[:, 0, 0] = 0
        o = torch.arange(6, dtype=torch.float64).view(6, 1, 1)*math.pi/6
        d = torch.atan2(th.sin()*o.cos()-th.cos()*o.sin(), th.cos()*o.cos()+th.sin()*o.sin()).abs()
        return radial, torch.exp(-d**2/(2*(math.pi/6/1.2)**2))

#| export
def _noise_threshold(
    power:Tensor, # (B,1,H,W) squared amplitude at the finest scale
    filters:Tensor, # (4,H,W) of this orientation
)->Tensor: # (B,1,1,1)
    "Energy that noise alone would give, from the median amplitude (Kovesi 1999)"
    p = power.flatten(1)
    med = (p.median(1).values-(-p).median(1).values)/2     # torch's median is the lower of the two middle values
    npow = -med/math.log(.5)/(filters[0]**2).sum()
    f = torch.fft.ifft2(filters.to(torch.complex128)).real.flatten(1)*math.sqrt(filters[0].numel())
    gram = (f@f.T).to(npow)
    s2, sij = gram.diagonal().sum(), gram.triu(1).sum()
    tau = (npow*(s2+2*sij)).clamp(min=0).sqrt()
    return (tau*(math.sqrt(math.pi/2)+2*math.sqrt(2-math.pi/2))/1.7).view(-1, 1, 1, 1)

def _energy(
    spectrum:Tensor, # (B,1,H,W) FFT of an image
    filters:Tensor, # (4,H,W)
)->tuple: # weighted energy above the noise, summed amplitude; each (B,1,H,W)
    "Phase congruency's numerator and denominator at one orientation"
    eo = torch.fft.ifft2(spectrum*filters[None])                            # (B,4,H,W)
    an, total = eo.abs(), eo.sum(1, keepdim=True)
    amp = an.sum(1, keepdim=True)
    m = total/(total.abs()+1e-4)
    prod = eo*m.conj()
    energy = (prod.real-prod.imag.abs()).sum(1, keepdim=True)
    energy = (energy-_noise_threshold(an[:, :1]**2, filters)).clamp(min=0)
    width = amp/(an.amax(1, keepdim=True)+1e-4)/4
    return torch.sigmoid(10*(width-.5))*energy, amp

#| export
def phase_congruency(
    x:Tensor, # (B,1,H,W), 0..255
)->tuple: # congruency 0..1, largest and smallest moment over orientation; each (B,1,H,W) float64
    "Phase congruency with 4 scales and 6 orientations (Kovesi 1999), 0 for a constant image"
    radial, angular = (t.to(x.device) for t in _log_gabor(*x.shape[-2:]))
    spectrum, num, den, xx, yy, xy = torch.fft.fft2(x.double()), 0., 0., 0., 0., 0.
    for i, ang in enumerate(angular):
        e, amp = _energy(spectrum, radial*ang)
        num, den, p = num+e, den+amp, _safe_div(e, amp)
        c, s = math.cos(i*math.pi/6), math.sin(i*math.pi/6)
        xx, yy, xy = xx+(p*c)**2/3, yy+(p*s)**2/3, xy+p*p*c*s/6
    root = torch.hypot(xy, xx-yy)+1e-4
    return num/(den+1e-4), (xx+yy+root)/2, (xx+yy-root)/2

#| export
def _feature_match(
    f:Tensor, x:Tensor, mask:Tensor, # feature maps of fused image and source (B,1,H,W), and where the source has features
)->Tensor: # (B,1,H,W)
    "Local correlation of two feature maps inside the mask"
    _, _, vx, vf, c = _moments(mask*x, f, gaussian_window(11, 1.5), 'same')
    return (c+1e-4)/((vx*vf).abs().sqrt()+1e-4)*mask

@metric('QP', 'higher', '0..1, slightly above at times', 'Zhao, Laganiere and Liu 2007', dict(zl='0 if the sources or the fused image have no feature'))
def qp(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images, at least 11 x 11
    data_range:float=1., # value of white
    variant:str='default', # zl
)->Tensor: # (B,)
    "Preservation of phase congruency features (Zhao, Laganiere and Liu 2007)"
    f, a, b = (phase_congruency(t) for t in (fused, a, b))
    both = tuple(torch.where(a[0]>b[0], x, y) for x, y in zip(a, b))
    masks = [(x[0]>.1).double() for x in (a, b, both)]
    n, out = masks[2].sum((1, 2, 3)), 1.
    for k in range(3):
        match = torch.stack([_feature_match(f[k], x[k], m) for x, m in zip((a, b, both), masks)]).amax(0)
        out = out*_safe_div(match.sum((1, 2, 3)), n)
    return out*(f[0].amax((1, 2, 3))>0)

#| export
def _differences(
    x:Tensor, # (B,1,H,W)
)->tuple: # absolute differences along rows, columns, main and secondary diagonal
    "Neighbour differences in four directions"
    return tuple(d.abs() for d in (x[..., 1:]-x[..., :-1], x[..., 1:, :]-x[..., :-1, :],
                                   x[..., 1:, 1:]-x[..., :-1, :-1], x[..., 1:, :-1]-x[..., :-1, 1:]))

@metric('QSF', 'zero', '-1 upwards, 0 is ideal', 'Zheng et al. 2007', dict(zl='flat sources: the spatial frequency of the fused image itself'))
def qsf(
    fused:Tensor, a:Tensor, b:Tensor, # (B,1,H,W) images
    data_range:float=1., # value of white
    variant:str='default', # zl
)->Tensor: # (B,)
    "Relative excess of spatial frequency over the sources' (Zheng et al. 2007)"
    def sf(ds): return torch.where((z := sum(k*(d*d).sum((1, 2, 3)) for k, d in zip((1, 1, .5**.5, .5**.5), ds)))>0, torch.where(z>0, z, 1.).sqrt(), 0.)
    f, ref = sf(_differences(fused)), sf([torch.maximum(*d) for d in zip(_differences(a), _differences(b))])
    return _safe_div(f-ref, ref)+torch.where(ref==0, f, 0.)

#| export
def metric_table()->pd.DataFrame: # one row a metric: direction, range, paper, variants (default first), variants with gradients
    "What the registry knows, as a table"
    rows = [dict(metric=m.name, better=m.better, range=m.range, paper=m.paper, variants=', '.join(m.variants),
                 gradient='all' if len(m.grad)==len(m.variants) else ', '.join(m.grad) or 'none') for m in METRICS.values()]
    return pd.DataFrame(rows).set_index('metric')

#| export
PROTOCOLS = dict(cddfuse=[f'{m}:cdd' for m in ('EN', 'SD', 'SF', 'MI', 'SCD', 'VIF', 'Qabf', 'SSIM')])

def _as_batch(
    x, # tensor or array (H,W), (B,H,W) or (B,1,H,W), or a list of (H,W) arrays of one size
)->Tensor: # (B,1,H,W), floating
    "Images as a batch of float tensors; values are not changed"
    x = torch.as_tensor(np.stack([np.asarray(t) for t in x]) if isinstance(x, (list, tuple)) else x)
    x = x if x.is_floating_point() else x.float()
    return x[None, None] if x.ndim==2 else x[:, None] if x.ndim==3 else x

#| export
def _selection(
    metrics, # None for all, a name, or names; `'MI:cdd'` picks a variant
)->list: # pairs (metric, variant)
    "Resolve metric names; ValueError for unknown metrics or variants"
    names = list(METRICS) if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    return [(n, _variant(n, v or 'default')) for n, _, v in (s.partition(':') for s in names)]

#| export
@torch.no_grad()
def evaluate(
    fused, a, b, # fused images and their sources in [0, data_range]: (B,1,H,W), (B,H,W) or (H,W), or lists of (H,W) of one size
    metrics=None, # names such as 'SSIM' or 'MI:cdd'; default: all metrics in their default variants
    data_range:float=1., # value of white: 1. or 255.
    protocol:str|None=None, # 'cddfuse': that paper's eight columns on 8-bit values; instead of `metrics`
    names=None, # (B,) names of the images, default 0, 1, ...
    batch:int=8, # images worked on at a time; bounds the memory
)->pd.DataFrame: # columns name, metric, variant, value, better
    "Score fused images; raises ValueError for images or names that do not fit together and for unknown metrics"
    fused, a, b = map(_as_batch, (fused, a, b))
    if protocol is not None and (metrics is not None or protocol not in PROTOCOLS):
        raise ValueError(f'protocol {protocol!r}: known are {", ".join(PROTOCOLS)}, and metrics must not be given as well')
    chosen = _selection(PROTOCOLS[protocol] if protocol else metrics)
    names = [str(i) for i in range(len(fused))] if names is None else [str(n) for n in names]
    if len(names)!=len(fused): raise ValueError(f'{len(names)} names for {len(fused)} fused images')
    x = _check(fused, a, b, data_range, 'evaluate')
    values = []
    for part in zip(*(t.split(batch) for t in x)):
        if protocol: part = [t.round() for t in part]
        values.append(torch.stack([METRICS[m].raw(*part, data_range=255., variant=v).double() for m, v in chosen], 1).cpu())
    rows = [(n, m, v, y, METRICS[m].better) for n, ys in zip(names, torch.cat(values).tolist()) for (m, v), y in zip(chosen, ys)]
    return pd.DataFrame(rows, columns=['name', 'metric', 'variant', 'value', 'better'])

#| export
def summarise(
    df:pd.DataFrame, # tidy table of `evaluate`, with a column `method` if there are several
    confidence:float=.95, # level of the interval of the mean
    n_resamples:int=2000, # bootstrap resamples
    seed:int=0, # of the bootstrap
)->pd.DataFrame: # n, mean, std (divisor n-1), ci_low, ci_high for each method, metric and variant
    "Mean, spread and bootstrap confidence interval of the mean (Efron's BCa, scipy.stats.bootstrap)"
    def row(x):
        x = x.to_numpy(dtype=float)
        lo = hi = x.mean()
        if len(x)>1 and x.std()>1e-12*max(1., abs(lo)):
            ci = stats.bootstrap((x,), np.mean, confidence_level=confidence, n_resamples=n_resamples, random_state=np.random.default_rng(seed))
            lo, hi = ci.confidence_interval
        return pd.Series(dict(n=len(x), mean=x.mean(), std=x.std(ddof=1) if len(x)>1 else 0., ci_low=lo, ci_high=hi))
    keys = [k for k in ('method', 'metric', 'variant') if k in df]
    return df.groupby(keys, sort=False).value.apply(row).unstack().astype(dict(n=int)).reset_index()

#| export
def holm(
    p, # (k,) p-values
)->np.ndarray: # (k,) adjusted p-values
    "Holm's step-down correction (Holm 1979)"
    p = np.asarray(p, dtype=float)
    order, k = np.argsort(p), len(p)
    adjusted = np.minimum(np.maximum.accumulate(p[order]*(k-np.arange(k))), 1)
    return adjusted[np.argsort(order)]

#| export
def _paired(
    df:pd.DataFrame, # tidy table with a column `method`
)->dict: # (metric, variant) -> frame of images x methods, where more is better
    "Values by image and method, signed so that more is better; ValueError if methods were scored on different images"
    if 'method' not in df: raise ValueError('the table needs a column `method`: df.assign(method=...)')
    out = {}
    for key, g in df.groupby(['metric', 'variant'], sort=False):
        if (twice := g.duplicated(['name', 'method'])).any(): raise ValueError(f'{key[0]}: image {g.name[twice].iloc[0]} is scored twice for one method')
        t = g.pivot(index='name', columns='method', values='value')[list(dict.fromkeys(g.method))]
        if t.isna().any().any():
            raise ValueError(f'{key[0]}: methods were scored on different images, e.g. {t.index[t.isna().any(axis=1)][0]} is missing for {t.columns[t.isna().any()][0]}')
        out[key] = {'higher': t, 'lower': -t, 'zero': -t.abs()}[g.better.iloc[0]]
    return out

#| export
def compare(
    df:pd.DataFrame, # tidy table of `evaluate` with a column `method`, every method scored on the same images
    baseline:str|None=None, # compare all methods with this one only; default: all pairs of methods
)->pd.DataFrame: # metric, variant, method, other, n, median_gain (positive: method is better), p, p_holm (corrected within the metric)
    "Paired two-sided Wilcoxon signed-rank tests between methods, Holm-corrected (scipy.stats.wilcoxon)"
    frames = []
    for (metric, variant), t in _paired(df).items():
        if baseline is not None and baseline not in t: raise ValueError(f'no method {baseline!r}; there are {", ".join(t)}')
        pairs = [(m, baseline) for m in t if m!=baseline] if baseline else [(m, o) for i, m in enumerate(t) for o in list(t)[i+1:]]
        gains = [(t[m]-t[o]).to_numpy() for m, o in pairs]
        p = [stats.wilcoxon(g).pvalue if g.any() else 1. for g in gains]
        frames.append(pd.DataFrame(dict(metric=metric, variant=variant, method=[m for m, _ in pairs], other=[o for _, o in pairs], n=len(t),
                                        median_gain=[np.median(g) for g in gains], p=p, p_holm=holm(p))))
    return pd.concat(frames, ignore_index=True)

#| export
def mean_rank(
    df:pd.DataFrame, # tidy table of `evaluate` with a column `method`
)->pd.DataFrame: # methods x metrics, mean rank over the images (1 is best, ties share), and the mean over the metrics, sorted by it
    "Mean rank of each method, by metric and over all metrics"
    ranks = {m if v==next(iter(METRICS[m].variants)) else f'{m}:{v}': t.rank(axis=1, ascending=False).mean() for (m, v), t in _paired(df).items()}
    table = pd.DataFrame(ranks)
    return table.assign(mean=table.mean(axis=1)).sort_values('mean')

