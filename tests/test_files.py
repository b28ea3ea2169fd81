"""Volume and transform files: what is read is right, what cannot be is one line that names the file."""
import gzip
import random
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medfusion_nb.phantom import like, phantom_volume
from medfusion_nb.register import load_transform
from medfusion_nb.volume import read_labels, read_volume

HEAD = phantom_volume((32, 32, 12), seed=1)
MRI = sitk.Cast(HEAD.mri, sitk.sitkInt16)


def voxels(image): return sitk.GetArrayFromImage(image)


def place(image): return [*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()]


def write(path, image=MRI, packed=False):
    sitk.WriteImage(image, path, packed)
    return Path(path)


def same(path, **kwargs):
    "The file holds the MRI of the phantom; -> its notes."
    scan = read_volume(path, 'MR', **kwargs)
    np.testing.assert_array_equal(voxels(scan.image), voxels(MRI))
    np.testing.assert_allclose(place(scan.image), place(MRI), atol=1e-3)
    return ' '.join(scan.notes)


def refused(path, text, call=lambda p: read_volume(p, 'MR')):
    with pytest.raises(ValueError) as found: call(path)
    message = str(found.value)
    assert Path(path).name in message and text in message and '\n' not in message and len(message) < 500, message


def header(path, offset, kind, values):
    "Numbers of a NIfTI header changed."
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, offset, *values)
    path.write_bytes(data)
    return path


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize('kind', (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64))
def test_itk_agrees(kind):
    turned = sitk.DICOMOrient(like(voxels(MRI).clip(0, 100).astype(kind), MRI), 'PIR')
    for name in ('a.nrrd', 'a.nhdr', 'a.mha', 'a.mhd', 'a.nii', 'a.nii.gz', 'a.hdr'):
        for packed in (False, True):
            write(name, turned, packed)
            scan, theirs = read_volume(name, 'MR'), sitk.ReadImage(name)
            np.testing.assert_array_equal(voxels(scan.image), voxels(theirs).astype(np.float32))
            np.testing.assert_allclose(place(scan.image), place(theirs), atol=1e-4)
            if kind is not np.float64: np.testing.assert_array_equal(voxels(read_labels(name)), voxels(theirs))


def test_names():
    plain, packed = write('a.nii').read_bytes(), write('a.nii.gz').read_bytes()
    Path('gz.nii').write_bytes(packed)
    Path('plain.nii.gz').write_bytes(plain)
    assert 'compressed, against' in same('gz.nii') and 'not compressed, against' in same('plain.nii.gz')
    nii = nibabel.load('a.nii')
    for name in ('a.mgz', 'a.mgh'):
        nibabel.save(nibabel.MGHImage(np.asarray(nii.dataobj).astype(np.int16), nii.affine), name)
        assert same(name) == ''
    nibabel.save(nibabel.Nifti1Pair(np.asarray(nii.dataobj).astype(np.int16), nii.affine), 'pair.img')
    assert same('pair.img') == same('pair.hdr') == ''
    Path('renamed.nii').write_bytes(write('a.nrrd').read_bytes())
    assert 'NRRD, against its name' in same('renamed.nii')
    header(Path('pair.hdr'), 344, '4s', (b'\0\0\0\0',))
    refused('pair.hdr', 'Analyze 7.5')
    Path('pair.hdr').unlink()
    refused('pair.img', 'missing')
    with pytest.raises(ValueError, match='folder of volume files'): read_volume(Path.cwd())


def test_units():
    for code, factor, note in ((1, .001, 'in m'), (3, 1000, 'in um'), (0, 1, ''), (2, 1, '')):
        img = nibabel.load(write('a.nii'))
        img = nibabel.Nifti1Image(np.asarray(img.dataobj), np.diag([factor]*3 + [1]) @ img.affine, img.header)
        img.header.set_xyzt_units(code)
        nibabel.save(img, 'unit.nii')
        notes = same('unit.nii')
        assert note in notes and bool(notes) == bool(note)
    header(write('wrong.nii'), 123, 'B', (1,)) # millimetres that are called metres
    refused('wrong.nii', 'cannot be a scan')
    nrrd = write('a.nrrd').read_bytes()
    Path('cm.nrrd').write_bytes(nrrd.replace(b'encoding:', b'space units: "um" "um" "um"\nencoding:'))
    refused('cm.nrrd', 'cannot be a scan')
    Path('ell.nrrd').write_bytes(nrrd.replace(b'encoding:', b'space units: "ell" "ell" "ell"\nencoding:'))
    refused('ell.nrrd', "'ell' is not known")


def test_several_values():
    for kind in (np.complex64, np.dtype([('R', 'u1'), ('G', 'u1'), ('B', 'u1')])):
        nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), kind), np.eye(4)), 'values.nii')
        refused('values.nii', 'several values a voxel')
    vectors = sitk.Compose(MRI, MRI, MRI)
    for name in ('v.nrrd', 'v.mha', 'v.nii'): refused(write(name, vectors), 'several values a voxel')
    a, affine = voxels(MRI).T, nibabel.load(write('a.nii')).affine
    for stack in (np.stack([0*a, a], -1), np.stack([0*a, a], -1)[..., None, :]):
        nibabel.save(nibabel.Nifti1Image(stack, affine), 'many.nii.gz')
        assert same('many.nii.gz', index=1) == ''
        refused('many.nii.gz', '--index 0 to 1')
        refused('many.nii.gz', 'index 2', lambda p: read_volume(p, 'MR', index=2))


CHANGES = { # offset in the header, struct, values, what the message says
    'claims': (40, '<4h', (3, 32767, 32767, 32767), 'claims 70362301923326 bytes'), 'less': (46, '<h', (5,), 'has more'),
    'nothing': (42, '<h', (0,), 'cannot be'), 'negative': (42, '<h', (-3,), 'cannot be'), 'type': (70, '<h', (77,), 'type'),
    'bits': (72, '<h', (8,), 'contradict'), 'slope': (112, '<f', (float('nan'),), 'scale'),
    'inter': (116, '<f', (float('inf'),), 'scale'), 'offset': (108, '<f', (1e9,), 'fewer'),
    'before': (108, '<f', (3,), 'place of its voxels'), 'nan': (280, '<f', (float('nan'),), 'not a number'),
    'far': (292, '<f', (1e9,), 'origin'), 'flat': (280, '<12f', (0.,)*12, 'cannot be a scan'),
    'shear': (284, '<f', (5.,), 'perpendicular'), 'lost': (252, '<2h', (0, 0), 'orientation is unknown')}


@pytest.mark.parametrize('name', CHANGES)
def test_nifti_header(name):
    *change, text = CHANGES[name]
    path = header(write(f'{name}.nii'), *change)
    refused(path, text)
    Path(f'{name}.nii.gz').write_bytes(gzip.compress(path.read_bytes()))
    refused(f'{name}.nii.gz', text)


def test_bombs():
    whole = write('a.nii').read_bytes()
    Path('more.nii.gz').write_bytes(gzip.compress(whole + bytes(2**27), 1))
    refused('more.nii.gz', 'has more')
    Path('torn.nii.gz').write_bytes(gzip.compress(whole)[:-20])
    refused('torn.nii.gz', 'truncated')
    flipped = bytearray(gzip.compress(whole))
    flipped[-6] ^= 1 # of the checksum
    Path('flip.nii.gz').write_bytes(flipped)
    refused('flip.nii.gz', 'damaged')


TEXTS = {'dims': (b'NDims = 3', b'NDims = 2147483647', '2147483647'), 'size': (b'DimSize = 32', b'DimSize = 3200000', 'fewer'),
         'less': (b'DimSize = 32 32 12', b'DimSize = 32 32 11', 'has more'), 'inf': (b'Offset = ', b'Offset = inf ', 'cannot be'),
         'word': (b'MET_SHORT', b'A'*5000, 'not known'), 'outside': (b'= LOCAL', b'= ../a.mha', 'outside'),
         'absolute': (b'= LOCAL', b'= /etc/passwd', 'outside'), 'list': (b'= LOCAL', b'= LIST', 'several files'),
         'pattern': (b'= LOCAL', b'= a%02d.raw 1 9 1', 'several files'), 'missing': (b'= LOCAL', b'= b.raw', 'missing'),
         'twice': (b'NDims = 3', b'NDims = 3\nNDims = 4', 'twice'), 'ascii': (b'BinaryData = True', b'BinaryData = False', 'text')}


@pytest.mark.parametrize('name', TEXTS)
def test_metaimage_header(name):
    old, new, text = TEXTS[name]
    data = write('a.mha').read_bytes()
    assert old in data
    Path('sub').mkdir()
    Path(f'sub/{name}.mha').write_bytes(data.replace(old, new))
    refused(f'sub/{name}.mha', text)


def test_detached():
    write('a.mhd')
    Path('sub').mkdir()
    Path('sub/a.mhd').write_bytes(Path('a.mhd').read_bytes())
    Path('sub/a.raw').symlink_to(Path('a.raw').resolve())
    refused('sub/a.mhd', 'outside')
    Path('a.raw').write_bytes(Path('a.raw').read_bytes()[:-2])
    refused('a.mhd', 'fewer')
    short = write('a.nrrd').read_bytes()
    Path('short.nrrd').write_bytes(short[:-1])
    refused('short.nrrd', 'fewer')
    Path('word.nrrd').write_bytes(short.replace(b'encoding: raw', b'encoding: ' + b'A'*5000))
    refused('word.nrrd', 'encoding')


def test_swapped():
    "Neither by their names nor by their values, and not with --pair."
    for name, image in {'a.nii': HEAD.ct, 'b.nii': HEAD.mri, 'zero.nii': HEAD.ct + 1024}.items(): write(name, image)
    assert [read_volume(n, prefer=p).modality for n, p in (('a.nii', 'CT'), ('b.nii', 'MR'))] == ['CT', 'MR']
    refused('b.nii', 'Name the CT first', lambda p: read_volume(p, prefer='CT'))
    refused('b.nii', 'Name the CT first', lambda p: read_volume(p, 'CT'))
    refused('a.nii', 'Name the CT first', lambda p: read_volume(p, 'MR'))
    refused('zero.nii', 'intercept was lost', lambda p: read_volume(p, 'CT'))
    refused('zero.nii', 'intercept was lost', lambda p: read_volume(p, prefer='MR'))


def test_mutations():
    "Read or refused, whatever is changed in a file; more of them in test_hostile."
    for name in ('a.nrrd', 'a.mha', 'a.nii', 'a.nii.gz'): write(name)
    sitk.WriteTransform(sitk.Euler3DTransform((1, 2, 3), .1, .2, .3), 'a.tfm')
    sitk.WriteTransform(sitk.Euler3DTransform((1, 2, 3), .1, .2, .3), 'a.mat')
    for seed in range(150):
        r = random.Random(seed)
        name = r.choice(('a.nrrd', 'a.mha', 'a.nii', 'a.nii.gz', 'a.tfm', 'a.mat'))
        data, path = bytearray(Path(name).read_bytes()), Path(f'changed_{name}')
        for _ in range(r.choice((1, 3))):
            i = r.randrange(min(len(data), 400))
            data[i:i + r.choice((1, 4))] = r.choice((b'\xff', b'\0\0\xc0\x7f', b'', b' nan ', b'9'*20, b'A'*5000))
        path.write_bytes(data)
        try: load_transform(path) if name in ('a.tfm', 'a.mat') else read_volume(path, 'MR')
        except ValueError as e: assert path.name in str(e) and '\n' not in str(e)


def test_hdf5():
    t = sitk.CompositeTransform([sitk.Euler3DTransform((1, 2, 3), .1, .2, .3), sitk.TranslationTransform(3, (1, 2, 3))])
    sitk.WriteTransform(t, 'a.h5')
    np.testing.assert_allclose(load_transform('a.h5').TransformPoint((4, 5, 6)), t.TransformPoint((4., 5., 6.)))
    Path('inf.tfm').write_text('#Insight Transform File V1.0\n#Transform 0\nTransform: Euler3DTransform_double_3_3\n'
                               'Parameters: inf 0 0 1 2 3\nFixedParameters: 0 0 0 0\n')
    refused('inf.tfm', 'not finite', load_transform)
    Path('cut.h5').write_bytes(Path('a.h5').read_bytes()[:3000])
    refused('cut.h5', 'damaged', load_transform)
