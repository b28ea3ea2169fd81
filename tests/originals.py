"""Small files of every format that is read, how it is read, and who judges that; for test_hostile.py.

A judge compares what was read of a mutated file with another reader of the same file, or with its header.
"""
import gzip
import io
import itertools
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mutations as m
import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from nibabel.freesurfer.mghformat import MGHImage
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless,
                         JPEGLosslessSV1, RLELossless)

from medfusion_nb import volume as volume_module
from medfusion_nb.data import read_hu, read_image
from medfusion_nb.datasets import SETS, unpack
from medfusion_nb.nuclear import to_suv
from medfusion_nb.phantom import phantom_volume
from medfusion_nb.register import load_transform, rigid
from medfusion_nb.volume import Scan, read_volume, write_original


class Read(NamedTuple):
    "What a reader gave back."
    values:np.ndarray     # pixels, voxels, weights, bytes
    place:Any = ()        # size, spacing, origin, direction of a volume; names
    said:Any = ()         # notes


class Original(NamedTuple):
    "Files that are read as they are, and how."
    name:str
    files:dict[str, bytes]       # name -> content
    read:Callable[[Path], Read]  # given the folder of a case
    targets:list[str]            # files to mutate
    data_at:int|None = None      # where the values begin, uncompressed; None: not known
    plain:Callable = bytes       # content without the compression, which has a checksum
    judge:Callable|None = None   # folder, what was read, of the original -> '' or what is wrong
    unread:bool = False          # even the original is refused


def single(name, data, read, **kwargs):
    "An original of one file."
    return Original(name, {name: data}, lambda folder: read(folder/name), [name], **kwargs)


# ---- pictures: PIL is the judge

def smooth(shape, white, dtype):
    "A picture that uses its range."
    at = np.meshgrid(*[np.linspace(0, 3, n) for n in shape[:2]], indexing='ij')
    channels = range(3 if len(shape) > 2 else 1)
    a = np.stack([np.sin(at[0]*(2 + c) + at[1]**2) for c in channels], -1)
    a = (a - a.min())/np.ptp(a)
    return (a*white).astype(dtype).reshape(shape)


def as_pil(folder, name):
    "The picture as PIL reads it, RGB or grey; None where PIL refuses it."
    try:
        with Image.open(folder/name) as img:
            if img.mode not in ('L', 'RGB', 'I;16', 'I;16B', 'F'): return img.mode
            return np.asarray(img)
    except Exception: return None


def pictures(ending):
    "Originals of a format, of OpenCV."
    bits = dict(grey=((32, 28), 255, np.uint8), colour=((28, 32, 3), 255, np.uint8))
    if ending in ('png', 'tif'): bits['grey16'] = (32, 28), 65535, np.uint16
    def judge(name, white, tolerance):
        def compare(folder, got, was):
            other = as_pil(folder, name)
            if other is None: return 'PIL refuses it, and it was read otherwise than the original'
            if isinstance(other, str): return ''
            there = other/np.float32(white) if white else other
            if there.ndim == 2 and got.values.ndim == 3: there = there[..., None].repeat(3, 2)
            if there.shape != got.values.shape: return f'{got.values.shape}, as PIL reads it {there.shape}'
            off = np.abs(there - got.values).max()
            return f'differs by {off:.3g} from what PIL reads' if off > tolerance else ''
        return compare
    tolerance = .03 if ending == 'jpg' else 1e-5
    for kind, (shape, white, dtype) in bits.items():
        for how in ([], [cv2.IMWRITE_TIFF_COMPRESSION, 1])[:2 if ending == 'tif' else 1]:
            data = cv2.imencode(f'.{ending}', smooth(shape, white, dtype), how)[1].tobytes()
            name = f"{kind}{'_plain' if how else ''}.{ending}"
            def read(path): return Read(read_image(path, color=True))
            yield single(name, data, read, judge=judge(name, white, tolerance))
    if ending == 'tif':
        hu = smooth((32, 28), 2000, np.float32) - 1000
        data = cv2.imencode('.tif', hu, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
        yield single('hu.tif', data, lambda path: Read(read_hu(path)), judge=judge('hu.tif', None, 1e-3))


# ---- volumes

SIZE = 20, 18, 8


def heads():
    "CT and MRI of a small phantom."
    return phantom_volume(size=SIZE, seed=3)


def volume(path, **kwargs):
    "What read_volume reads."
    scan = read_volume(path, **kwargs)
    img = scan.image
    place = np.array([*img.GetSize(), *img.GetSpacing(), *img.GetOrigin(), *img.GetDirection()])
    return Read(sitk.GetArrayFromImage(img), place, scan)


def placed(got):
    "What is wrong with the place of a volume, and with the range of a CT."
    size, spacing, origin, axes = np.split(np.asarray(got.place), [3, 6, 9])
    axes = axes.reshape(3, 3)
    if tuple(got.values.shape[::-1]) != tuple(size.astype(int)): return 'its array has another size'
    if not np.isfinite(got.place).all(): return 'its place is not a number'
    if not (spacing > 1e-4).all() or not (spacing < 1e3).all(): return f'spacing of {spacing} mm'
    if np.abs(origin).max() > 1e6: return f'origin at {origin} mm'
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-2: return 'its axes are not perpendicular'
    if got.said.modality == 'CT' and np.abs(got.values).max() > 1e5: return f'a CT of {got.values.max():g} HU'
    return ''


def written(image, name, **kwargs):
    "The files that SimpleITK or nibabel writes: name -> content."
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(image, f'{folder}/{name}', **kwargs)
        return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def as_nifti(name):
    "Judges a NIfTI file by its header: the bytes are there, and the values and the affine are those."
    def judge(folder, got, was):
        import nibabel
        data = (folder/name).read_bytes()
        if name.endswith('.gz'): data = gzip.decompress(data)
        order = '<' if data[40:42] in (b'\3\0', b'\4\0', b'\5\0') or data[41:42] == b'\0' else '>'
        header = nibabel.Nifti1Header(data[:348], order, check=False)
        shape = tuple(int(n) for n in header['dim'][1:1 + int(header['dim'][0])] if n != 1)
        if got.values.shape[::-1] != shape: return f'{got.values.shape[::-1]} voxels, its header says {shape}'
        dtype, at = header.get_data_dtype(), int(header['vox_offset'])
        if len(data) < at + dtype.itemsize*got.values.size: return 'it claims more voxels than there are'
        if got.said.notes: return ''
        slope, inter = header.get_slope_inter()
        there = np.frombuffer(data, dtype, got.values.size, at)*(slope or 1.) + (inter or 0.)
        if not np.allclose(there, got.values.ravel(), rtol=1e-4, atol=1e-3): return 'other values'
        unit = {1: 1000, 3: .001}.get(int(header['xyzt_units']) & 7, 1)
        affine = header.get_best_affine()*unit
        mine = np.reshape(got.place[9:], (3, 3))*got.place[3:6]
        if not np.allclose(np.diag([-1, -1, 1]) @ affine[:3, :3], mine, atol=1e-3): return 'another affine'
        return ''
    return judge


def niftis():
    "NIfTI in all its clothes, and the format of FreeSurfer."
    phantom = heads()
    ct, mri = sitk.Cast(phantom.ct, sitk.sitkInt16), sitk.Cast(phantom.mri, sitk.sitkFloat32)
    for name, image in (('ct.nii', ct), ('mri.nii', mri), ('ct.nii.gz', ct)):
        data = written(image, name)[name]
        plain = gzip.decompress if name.endswith('.gz') else bytes
        yield single(name, data, volume, judge=as_nifti(name), data_at=352, plain=plain)
    affine, voxels = np.diag([2., 2, 3, 1]), sitk.GetArrayFromImage(mri).T
    data = gzip.compress(MGHImage(voxels, affine).to_bytes(), mtime=0)
    yield single('mri.mgz', data, volume, data_at=284, plain=gzip.decompress)
    pair = nibabel.Nifti1Pair(voxels, affine)
    pair.header.set_xyzt_units('mm')
    for form in (pair.set_sform, pair.set_qform): form(affine, 1)
    parts = {f'mri.{kind}': io.BytesIO() for kind in ('hdr', 'img')}
    holders = [nibabel.FileHolder(fileobj=f) for f in parts.values()]
    pair.to_file_map(dict(zip(('header', 'image'), holders)))
    files = {name: f.getvalue() for name, f in parts.items()}
    yield Original('mri.img', files, lambda folder: volume(folder/'mri.img'), ['mri.hdr', 'mri.img'])


def as_text_says(name, words):
    "Judges NRRD and MetaImage by the sizes in their header."
    def judge(folder, got, was):
        data = (folder/name).read_bytes()
        sizes = re.findall(words + rb'[ \t]*[=:][ \t]*([\d \t]*)', data[:m.head(data)], re.I)
        said = [[*map(int, s.split())] for s in sizes]
        mine = [*got.values.shape[::-1]]
        return '' if mine in said else f'{got.values.shape[::-1]} voxels, its header says {sizes}'
    return judge


def itk_files(first, second, words):
    "NRRD or MetaImage, as one file and as header and data."
    phantom = heads()
    ct, mri = sitk.Cast(phantom.ct, sitk.sitkInt16), sitk.Cast(phantom.mri, sitk.sitkFloat32)
    kinds = (f'ct.{first}', ct, False), (f'mri.{first}', mri, True), (f'ct.{second}', ct, False)
    for name, image, zipped in kinds:
        files = written(image, name, useCompression=zipped)
        data_at = None if zipped or len(files) > 1 else m.head(files[name])
        def read(folder, name=name): return volume(folder/name)
        yield Original(name, files, read, [name, *files], data_at, judge=as_text_says(name, words))


# ---- DICOM: pydicom is the judge

def as_pydicom(folder, got, was):
    "Judges a volume by the files of its series, each on its own; not where the reader noted something."
    if got.said.notes: return ''
    uid, slices = got.said.headers[0].get('SeriesInstanceUID'), []
    for path in sorted(folder.iterdir()):
        try: ds = pydicom.dcmread(path, force=True)
        except Exception: return f'pydicom cannot read {path.name}, and nothing was said'
        if ds.get('SamplesPerPixel') is None: ds.SamplesPerPixel = 1 # pydicom asks for it, we do not
        if ds.get('SeriesInstanceUID') == uid: slices += frames(ds)
    if None in slices: return 'pydicom refuses its pixels, and it was read otherwise than the original'
    if len(slices) != len(got.values): return f'{len(got.values)} slices, its files hold {len(slices)}'
    normal = np.reshape(got.place[9:], (3, 3))[:, 2]
    slices.sort(key=lambda s: normal @ s[0])
    for (position, spacing, pixels, padded), mine in zip(slices, got.values):
        if not np.allclose(spacing, got.place[[4, 3]], rtol=1e-2): return f'spacing is not {spacing}'
        if isinstance(pixels, np.ndarray) and not padded:
            if pixels.shape != mine.shape: return f'slices of {mine.shape}, a file holds {pixels.shape}'
            if got.said.modality == 'CT': pixels = np.maximum(pixels, -1024)
            if not np.allclose(pixels, mine, rtol=1e-4, atol=.01): return 'other values than pydicom decodes'
    if not np.allclose(slices[0][0], got.place[6:9], atol=.2): return 'its first slice lies elsewhere'
    return ''


def frames(ds):
    "Position, pixel spacing and values of the images of a file; None for one that cannot be."
    try:
        if 'SamplesPerPixel' not in ds: ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = (ds.get('PhotometricInterpretation') or 'MONOCHROME2').upper()
        if 'TransferSyntaxUID' not in ds.file_meta: # then it is that of the header
            implicit, little = ds.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        try: pixels = np.reshape(ds.pixel_array, (-1, ds.Rows, ds.Columns)).astype(float)
        except (NotImplementedError, RuntimeError) as e:
            if 'plugin' not in str(e) and 'missing' not in str(e): raise
            pixels = itertools.repeat(None) # no decoder here
        if ds.get('Modality') == 'NM': return as_stacked(ds)
        shared = ds.get('SharedFunctionalGroupsSequence') or []
        each = ds.get('PerFrameFunctionalGroupsSequence') or [None]
        found = []
        for frame, values in zip(each, pixels):
            def get(group, keyword):
                if frame is None: return ds.get(keyword)
                return next((g[group][0] for g in (frame, *shared) if group in g), {}).get(keyword)
            slope = float(get('PixelValueTransformationSequence', 'RescaleSlope') or 1)
            inter = float(get('PixelValueTransformationSequence', 'RescaleIntercept') or 0)
            position = np.array(get('PlanePositionSequence', 'ImagePositionPatient'), float)
            spacing = np.array(get('PixelMeasuresSequence', 'PixelSpacing'), float)
            if values is not None: values = values*slope + inter
            found.append((position, spacing, values, 'PixelPaddingValue' in ds))
        return found
    except Exception: return [None]


def series():
    "A CT series in a folder, as it is and in four compressions; one file is mutated."
    ct = heads().ct[..., :6]
    def original(name, change):
        with tempfile.TemporaryDirectory() as folder:
            paths = write_series(ct, Path(folder))
            for path in paths:
                ds = pydicom.dcmread(path)
                change(ds)
                ds.save_as(path)
            files = {p.name: p.read_bytes() for p in paths}
        return Original(name, files, lambda folder: volume(folder, modality='CT'), [*files], judge=as_pydicom)
    def rle(ds): ds.compress(RLELossless, generate_instance_uid=False)
    def itk(uid, compressor):
        def compress(ds):
            image = sitk.GetImageFromArray(ds.pixel_array[None])
            [data] = written(image, 'x.dcm', useCompression=True, compressor=compressor).values()
            other = pydicom.dcmread(io.BytesIO(data))
            ds.PixelData = encapsulate([*generate_frames(other.PixelData, number_of_frames=1)])
            ds['PixelData'].VR, ds.file_meta.TransferSyntaxUID = 'OB', uid
            ds['PixelData'].is_undefined_length = True
        return compress
    yield original('plain', lambda ds: None)
    yield original('plain16', lambda ds: None)
    yield original('rle', rle)
    yield original('jpeg', itk(JPEGLosslessSV1, 'JPEG'))
    yield original('jpeg2000', itk(JPEG2000Lossless, 'JPEG2000'))


def write_series(ct, folder, modality='CT'):
    "The slices of a scan as a scanner writes them, with the same identifiers each time."
    kept, numbers = volume_module.generate_uid, itertools.count(1)
    volume_module.generate_uid = lambda *args, **kwargs: f'1.2.826.0.1.3680043.8.498.{next(numbers)}'
    try: return write_original(ct, folder, modality)
    finally: volume_module.generate_uid = kept


def enhanced():
    "The same CT in one enhanced file with many frames."
    ct = heads().ct[..., :6]
    with tempfile.TemporaryDirectory() as folder:
        slices = [pydicom.dcmread(p) for p in write_series(ct, Path(folder))]
    ds = slices[0]
    def item(**values):
        "A sequence of one item; undefined lengths, so that a mutation can change the length of an element."
        inner = Dataset()
        for k, v in values.items(): setattr(inner, k, v)
        inner.is_undefined_length_sequence_item = True
        return [inner]
    scale = dict(RescaleSlope=ds.RescaleSlope, RescaleIntercept=ds.RescaleIntercept, RescaleType='HU')
    ds.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=ds.ImageOrientationPatient),
        PixelMeasuresSequence=item(PixelSpacing=ds.PixelSpacing, SliceThickness=ds.SliceThickness),
        PixelValueTransformationSequence=item(**scale))
    ds.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=item(ImagePositionPatient=s.ImagePositionPatient))[0] for s in slices]
    for e in ds.iterall():
        if e.VR == 'SQ': e.is_undefined_length = True
    ds.NumberOfFrames, ds.PixelData = len(slices), b''.join(s.PixelData for s in slices)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.2.1'
    for k in ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', *scale): ds.pop(k, None)
    for name in ('plain', 'rle'):
        if name == 'rle': ds.compress(RLELossless, generate_instance_uid=False)
        data = io.BytesIO()
        ds.save_as(data)
        def read(path): return volume(path, modality='CT')
        yield single(f'{name}.dcm', data.getvalue(), read, judge=as_pydicom)


def nuclear():
    "A PET in slices, and a SPECT in one file; what tells of the SUV is read as well."
    image = sitk.Cast(heads().mri, sitk.sitkFloat32)[..., :6]
    for kind in ('PT', 'NM'):
        def read(folder, kind=kind):
            got = volume(folder, modality=kind)
            to_suv(got.said, must=False)
            return got
        with tempfile.TemporaryDirectory() as folder:
            paths = write_series(image/10, Path(folder), kind)
            for path in paths: # undefined lengths, so that a mutation can change the length of an element
                ds = pydicom.dcmread(path)
                for e in ds.iterall():
                    if e.VR == 'SQ': e.is_undefined_length = True
                ds.save_as(path)
            files = {p.name: p.read_bytes() for p in paths}
        yield Original(kind, files, read, [*files], judge=as_pydicom)


def as_stacked(ds):
    "Frames of nuclear medicine, as the standard stacks them (C.8.4.15)."
    detector = ds.DetectorInformationSequence[0]
    row, column = np.reshape(detector.ImageOrientationPatient, (2, 3)).astype(float)
    normal, pixels = np.cross(row, column), np.reshape(ds.pixel_array, (-1, ds.Rows, ds.Columns)).astype(float)
    numbers = ds.get('SliceVector') or range(1, len(pixels) + 1)
    numbers = [numbers] if isinstance(numbers, int) else numbers
    pixels = pixels*float(ds.get('RescaleSlope') or 1) + float(ds.get('RescaleIntercept') or 0)
    first, spacing = np.array(detector.ImagePositionPatient, float), np.array(ds.PixelSpacing, float)
    return [(first + (k - 1)*float(ds.SpacingBetweenSlices)*normal, spacing, p, False) for k, p in zip(numbers, pixels)]


# ---- transforms

def transforms():
    "ITK's text, MATLAB and HDF5 files, one of ANTs, a chain, a matrix of FLIRT."
    t = rigid([3., -5, 8], [12.5, -7.25, 20], [1., 2, 3])
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(t.GetMatrix())
    affine.SetTranslation([5.5, -3.25, 8])
    image, data = heads().ct, {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = {'euler.tfm': t, 'euler.mat': t, 'euler.h5': t, '0GenericAffine.mat': affine,
                 'chain.tfm': sitk.CompositeTransform([t, affine])}
        for name, part in kinds.items():
            sitk.WriteTransform(part, f'{folder}/{name}')
            data[name] = Path(folder, name).read_bytes()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.reshape(t.GetMatrix(), (3, 3)), (4.5, -6.25, 10)
    data['flirt.mat'] = '\n'.join('  '.join(f'{x:.8f}' for x in row) for row in matrix).encode() + b'\n'
    def read(path): return points(load_transform(path, image, image))
    found = [single(name, content, read, judge=is_rigid) for name, content in data.items()]
    rest = [o for o in found if o.name != 'euler.h5']
    return [*rest, *rest, *found] # an HDF5 file takes a process each


POINTS = np.array([[0., 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]])

def points(t): return Read(np.array([t.TransformPoint(p.tolist()) for p in POINTS]))


def is_rigid(folder, got, was):
    "What is wrong with points that a transform moved."
    def far(p): return np.linalg.norm(p[:, None] - p[None], axis=-1)
    if np.abs(got.values).max() > 1e6: return f'it moves a head to {got.values[0]}'
    return '' if np.abs(far(got.values) - far(POINTS)).max() < 1 else 'not rigid'


# ---- weights and records

def content_of(model):
    "Weights, their shapes and the configuration of a network."
    state = model.state_dict()
    values = np.concatenate([v.float().numpy().ravel() for v in state.values()])
    return Read(values, [(k, tuple(v.shape)) for k, v in state.items()], model.config)


def small():
    "The smallest network."
    import torch
    import_module('torchvision') # the full network, for which a changed configuration asks, takes seconds to load it
    from medfusion_nb.model import CompactNet
    torch.manual_seed(0)
    return CompactNet((4, 4, 4), (1, 1, 1), 2).eval()


def fuses(folder, got, was):
    "A network of another configuration than the original's is not what the weights are of."
    return '' if list(got.place) == list(was.place) else 'weights of another shape'


def checkpoints():
    "Files of save_checkpoint."
    from medfusion_nb.model import load_checkpoint, load_network, save_checkpoint
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(small(), Path(folder, 'x.pth'), epoch=3)
        data = Path(folder, 'x.pth').read_bytes()
    for name, read in (('load.pth', load_checkpoint), ('network.pth', load_network)):
        yield single(name, data, lambda path, read=read: content_of(read(path)), judge=fuses)


def resigned(folder):
    "A folder of weights whose checksum is that of the mutated file, as one writes it who changes both."
    import hashlib
    config = json.loads((folder/'config.json').read_text())
    config['sha256'] = hashlib.sha256(next(folder.glob('model.*.safetensors')).read_bytes()).hexdigest()
    (folder/'config.json').write_text(json.dumps(config))
    return network(folder)


def network(folder):
    from medfusion_nb.model import load_network
    return content_of(load_network(folder))


def own_class(folder):
    from medfusion_nb.model import CompactNet
    return content_of(CompactNet.from_pretrained(folder))


def folders(targets):
    "Folders of weights: save_shipped's, and that of save_pretrained."
    from medfusion_nb.model import save_shipped
    signed = resigned if targets == 'weights' else network
    readers = dict(int8=network, float32=signed, hub=network)
    readers['class'] = own_class
    for name, read in readers.items():
        with tempfile.TemporaryDirectory() as folder:
            if name in ('hub', 'class'): small().save_pretrained(folder)
            else: save_shipped(small(), folder, int8=name == 'int8')
            files = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
        [weights] = [n for n in files if n.endswith('.safetensors')]
        target = weights if targets == 'weights' else 'config.json'
        data_at = 8 + int.from_bytes(files[weights][:8], 'little')
        if target != weights or name == 'int8': data_at = None # a scale is of many values
        yield Original(name, files, read, [target], data_at, judge=fuses)


def records():
    "The configuration of weights, and what is kept of a refused registration."
    yield from folders('config')
    from medfusion_nb.register import Registration
    from medfusion_nb.study import Alignment, candidate, write_refused
    phantom = phantom_volume(size=(32, 32, 16), seed=3)
    def scan(image, kind): return Scan(image, kind, [], [], set(), kind)
    ct, mri = scan(phantom.ct, 'CT'), scan(phantom.mri, 'MR')
    t = rigid([3., -5, 8], [12.5, -7.25, 20])
    found = Registration(t, *[.5 + i/16 for i in range(12)], 'refused', 'its mutual information')
    def read(folder):
        kept = candidate(ct, mri, folder/'out')
        if kept is None: return Read(np.zeros(0), (), 'none')
        return Read(points(kept.transform).values, kept[1:-2], kept[-2:])
    def judge(folder, got, was):
        if got.said == 'none': return ''
        odd = [x for x in got.place if type(x) is not float or not np.isfinite(x)]
        if odd: return f'numbers that are {odd}'
        return '' if all(type(x) is str for x in got.said) else f'words that are {got.said}'
    with tempfile.TemporaryDirectory() as folder:
        kept = write_refused(Alignment(ct, mri, t, 'registration', found, 'x'), Path(folder, 'out'))
        names = 'medfusion.json', 'candidate.tfm'
        files = {f'{kept.name}/{name}': (kept/name).read_bytes() for name in names}
        target = f'{kept.name}/medfusion.json'
    yield Original('refused', files, read, [target], judge=judge)


def onnx():
    "A network of medfusion_export; and one that is sealed again when it was changed, as one writes it who can."
    from medfusion_nb.engine import OnnxEngine, export_onnx, seal
    pair = np.random.default_rng(0).random((2, 1, 16, 24), np.float32)
    def fused(path): return Read(OnnxEngine(path)(*pair))
    def sealed(path):
        path.write_bytes(seal(path.read_bytes()[:-76]))
        return fused(path)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(small(), Path(folder, 'x.onnx'))
        data = Path(folder, 'x.onnx').read_bytes()
    yield single('network.onnx', data, fused, judge=lambda *_: 'it was read')
    yield single('sealed.onnx', data, sealed)


# ---- archives

def archives(kind):
    "What fetch unpacks; a tar file is none."
    picture = cv2.imencode('.png', smooth((16, 16), 255, np.uint8))[1].tobytes()
    files = {f'set/CT-MRI/{k}/{i}.png': picture + bytes([i]) for k in ('CT', 'MRI') for i in range(3)}
    out = io.BytesIO()
    if kind == 'zip':
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
            for name, data in files.items(): z.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    else:
        with tarfile.open(fileobj=out, mode='w') as t:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo('set/CT-MRI/CT/9.png')
            info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
            t.addfile(info)
    name = f'set.{kind}'
    def read(path):
        "The names and the content of what was unpacked."
        shutil.rmtree(path.parent/'unpacked', ignore_errors=True)
        unpack(path, SETS['AANLIB'], path.parent/'unpacked')
        there = [p for p in sorted(path.parent.rglob('*')) if not p.is_dir() and p != path]
        found = {str(p.relative_to(path.parent)): p for p in there}
        links = [n for n, p in found.items() if p.is_symlink()]
        data = {n: p.read_bytes() for n, p in found.items() if n not in links}
        return Read(np.frombuffer(b''.join(data.values()), np.uint8), [*data], (links, data))
    def judge(folder, got, was):
        links, data = got.said
        if links: return f'links were unpacked: {links}'
        for n, content in data.items():
            if not re.fullmatch(r'unpacked/(CT|MRI)/\d+\.png', n): return f'{n} was written'
            if content not in files.values(): return f'{n} has another content'
        return ''
    yield single(name, out.getvalue(), read, judge=judge, unread=kind == 'tar')


NII = nibabel.Nifti1Header.template_dtype
MGH = MGHImage.header_class.template_dtype

# format -> its originals, the mutations that know it (by the ending of the file, '' for any)
FORMATS = dict(
    png=(lambda: pictures('png'), {'': (m.chunk,)}),
    tiff=(lambda: pictures('tif'), {'': (m.tag,)}),
    jpeg=(lambda: pictures('jpg'), {'': (m.segment,)}),
    bmp=(lambda: pictures('bmp'), {'': (m.number,)}),
    dicom=(enhanced, {'': (m.element,)}),
    series=(series, {'': (m.element,)}),
    nuclear=(nuclear, {'': (m.element,)}),
    nifti=(niftis, {'nii': (m.field(NII),), 'hdr': (m.field(NII),), 'img': (m.number,),
                    'nii.gz': (m.inside(m.field(NII), *m.BYTES),),
                    'mgz': (m.inside(m.field(MGH), *m.BYTES),)}),
    nrrd=(lambda: itk_files('nrrd', 'nhdr', b'sizes'), {'': (m.word, m.line)}),
    metaimage=(lambda: itk_files('mha', 'mhd', b'DimSize'), {'': (m.word, m.line)}),
    transform=(transforms, {'tfm': (m.word, m.line), 'flirt.mat': (m.word, m.line), '': (m.number,)}),
    zip=(lambda: archives('zip'), {'': (m.member,)}),
    tar=(lambda: archives('tar'), {'': (m.number,)}),
    pth=(checkpoints, {'': (m.pickled,)}),
    safetensors=(lambda: folders('weights'), {'': (m.tensors,)}),
    onnx=(onnx, {'': (m.number,)}),
    json=(records, {'': (m.entry, m.entry, m.word, m.deep)}))
