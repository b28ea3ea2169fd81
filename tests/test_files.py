"""Volume and transform files: what is read is right, what cannot be is one line that names the file."""
import gzip
import random
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medfusion_nb import register
from medfusion_nb.core import one_line_errors
from medfusion_nb.phantom import like, phantom_volume
from medfusion_nb.register import load_transform
from medfusion_nb.volume import has_air, read_labels, read_volume

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


def packed(name, data):
    "Some bytes in a file, compressed where its name says so."
    Path(name).write_bytes(gzip.compress(data) if name.endswith('z') else data)
    return name


def changed(source, *changes):
    "A copy of a file in which words of its header are others."
    data = write(source).read_bytes()
    for old, new in changes:
        assert old in data
        data = data.replace(old, new, 1)
    return packed(f'changed{Path(source).suffix}', data)


def test_sheared():
    "A column or a row too few in the header; what follows the voxels may be a few zeros, and is said."
    whole = write('a.nii').read_bytes()
    for at in (42, 44):
        header(write('a.nii'), at, '<h', (31,))
        for name in ('r.nii', 'r.nii.gz'): refused(packed(name, Path('a.nii').read_bytes()), 'has more')
    for name in ('a.nrrd', 'a.mha'):
        for pack in (False, True):
            data = write(name, packed=pack).read_bytes()
            refused(packed(f'less_{name}', data.replace(b'32 32 12', b'31 32 12')), 'has more')
    for name in ('b.nii', 'b.nii.gz'):
        assert '512 bytes after the voxels were passed over' in same(packed(name, whole + bytes(512)))
        refused(packed(name, whole + bytes(513)), 'has more')
        refused(packed(name, whole + bytes(9) + b'x'), 'has more')


def test_freesurfer():
    nii = nibabel.load(write('a.nii'))
    nibabel.save(nibabel.MGHImage(np.asarray(nii.dataobj).astype(np.int16), nii.affine), 'a.mgh')
    data = Path('a.mgh').read_bytes()
    for name in ('tags.mgh', 'tags.mgz', 'tags.mgh.gz'): assert same(packed(name, data + b'\1\2'*5000)) == ''
    for name in ('lost.mgh', 'lost.mgz'): refused(packed(name, data[:28] + b'\0\0' + data[30:]), 'orientation')


def test_nrrd_words():
    small = [(b'7.1875', b'.71875')]*2 + [(b'15)', b'1.5)'), (b'-111.40625,-111.40625,-87.5', b'-11.140625,-11.140625,-8.75')]
    for unit in (b'cm', b'"cm"', b'Centimeters', b'"CENTIMETER"'):
        units = b'encoding:', b'space units: ' + b' '.join([unit]*3) + b'\nencoding:'
        assert 'converted to mm' in same(changed('a.nrrd', *small, units))
    scan = read_volume(changed('a.nrrd', (b'space origin: (-111.40625,-111.40625,-87.5)\n', b'')), 'MR')
    assert scan.image.GetOrigin() == (0, 0, 0) and 'no space origin' in scan.notes[0]
    refused(changed('a.nrrd', (b'domain domain domain', b'vector domain domain')), '(axes vector domain domain)')


def test_metaimage_words():
    scan = read_volume(changed('a.mha', (b'Offset', b'Foo')), 'MR')
    assert scan.image.GetOrigin() == (0, 0, 0) and 'no Offset' in scan.notes[0]
    end = b'ElementDataFile'
    assert same(changed('a.mha', (end, b'DistanceUnits =\n' + end))) == ''
    refused(changed('a.mha', (end, b'HeaderSize = 100\n' + end)), 'HeaderSize')
    refused(changed('a.mha', (end, b'ElementByteOrderMSB = True\n' + end)), 'disagree')
    write('a.mhd')
    Path('100%.raw').write_bytes(Path('a.raw').read_bytes())
    assert same(packed('b.mhd', Path('a.mhd').read_bytes().replace(b'a.raw', b'100%.raw'))) == ''


def test_nifti_neighbours():
    "What was refused without need, believed without reason, or refused with a way out that leads nowhere."
    for offset in (float('inf'), -float('inf'), float('nan')):
        refused(header(write('inf.nii'), 108, '<f', (offset,)), 'place of its voxels')
    refused(header(write('scale.nii'), 112, '<f', (1e36,)), 'scl_slope')
    assert 'qform cannot be' in same(header(write('q.nii'), 256, '<3f', (3, 3, 3)))
    for code in (0, 1): refused(header(write('kind.nii'), 70, '<2h', (code, code)), f'data type {code} is not read')
    refused(header(write('half.nii'), 344, '4s', (b'ni1\0',)), 'call it half.hdr')
    for name in ('one.img', 'one.hdr'):
        assert 'against its name' in same(packed(name, write('a.nii').read_bytes()))
    for name in ('two.nrrd', 'two.mha', 'two.nii'): refused(write(name, MRI[:, :, 3]), 'PNG')
    for data, said in ((gzip.compress(write('a.nii').read_bytes()), 'compressed twice'), (b'<!DOCTYPE html><p>', 'web page'),
                       (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull')):
        refused(packed('x.nii.gz', data), said)
    Path('x.nii').write_bytes(b'<html><body>')
    refused('x.nii', 'web page')


BIG = phantom_volume((48, 48, 24), seed=1)
HU = voxels(BIG.ct).astype(np.float32)


def hu(a):
    "A volume of these values, as a CT and as one whose modality is to be guessed."
    write('x.nii', like(np.asarray(a, np.float32), sitk.GetImageFromArray(np.asarray(a, np.float32))))
    return 'x.nii'


def around(a, value, n=6): return np.pad(a, ((0, 0), (n, n), (n, n)), constant_values=value)


def test_lost_intercept():
    "Padding at about -1000 looks like air."
    for a in (around(HU + 1024, -1024), around(HU + 1000, -1000), around(HU + 1024, -2000).clip(-1024)):
        refused(hu(a), 'intercept was lost', lambda p: read_volume(p, 'CT'))
        assert not has_air(sitk.ReadImage('x.nii'))


def test_stretched():
    "A soft-tissue window stretched over the range of a CT; a CT that was clipped to that range is one."
    for center, width in ((40, 400), (50, 350), (40, 80), (35, 100)):
        for top in (1000, 1024):
            window = ((HU - center)/width + .5).clip(0, 1)
            refused(hu(window*2*top - top), 'not Hounsfield units', lambda p: read_volume(p, 'CT'))
    for low, high in ((-1000, 1000), (-1024, 1024), (-1024, 3071), (-1000, 400)):
        for a in (HU, around(HU, -2048), around(HU, -3024), around(HU, -1000)):
            assert read_volume(hu(a.clip(low if a.min() > -2000 else -3024, high)), 'CT').notes == []


def test_no_air():
    "Soft tissue alone is taken for HU and said; a range of bytes is not."
    for low, high in ((0, 80), (0, 100), (-100, 300)):
        assert 'no air' in read_volume(hu(HU.clip(low, high)), 'CT').notes[0]
    for high in (127, 128, 200, 254, 255):
        refused(hu((HU/80).clip(0, 1)*high), '8 bits', lambda p: read_volume(p, 'CT'))


def test_dark_background():
    "An MRI whose background is one value near -1000."
    mri = voxels(BIG.mri)
    for value in (-1024, -1000):
        for part in (.2, .4):
            a = np.where(mri < np.quantile(mri, part), value, mri)
            refused(hu(a), 'not Hounsfield units', lambda p: read_volume(p, 'CT'))
            assert read_volume('x.nii', 'MR').modality == 'MR'


START = '#Insight Transform File V1.0\n#Transform 0\n'


def tfm(name, numbers, fixed='4 5 6', start=START):
    Path('x.tfm').write_bytes(f'{start}Transform: {name}_double_3_3\nParameters: {numbers}\n'
                              f'FixedParameters: {fixed}\n'.encode('latin-1'))
    return 'x.tfm'


def test_transform_files():
    euler = 'Euler3DTransform'
    for fixed in ('0 0 0 nan', 'inf 0 0'): refused(tfm(euler, '0 0 0 1 2 3', fixed), 'not finite', load_transform)
    refused(tfm(euler, '101 0 0 1 2 3'), 'radians', load_transform)
    refused(tfm(euler, '0 0 0 1 2 3\nParameters: 0 0 0 9 9 9'), 'damaged', load_transform)
    refused(tfm("Foo'" + 'A'*99, '0'), "AAA: a rigid", load_transform)
    for start in (START + '# könig\n', START + '  '):
        assert load_transform(tfm(euler, '0 0 0 1 2 3', start=start)).GetTranslation() == (1, 2, 3)
    sitk.WriteTransform(sitk.CompositeTransform(3), 'empty.h5')
    refused('empty.h5', 'damaged', load_transform)


def goes(t, *points):
    return np.array([t.TransformPoint(p) for p in points or ((7., 8., 9.), (1., 0., 0.), (-50., 3., 99.))])


def test_rigid_classes():
    "As SimpleITK maps points, or as the class of ITK is defined where SimpleITK has no such class."
    for w in ('', '-'):
        path = tfm('QuaternionRigidTransform', f'.1 .2 .3 {w}.9273618495495703 1 2 3')
        np.testing.assert_allclose(goes(load_transform(path)), goes(sitk.ReadTransform(path)), atol=1e-6)
    refused(tfm('QuaternionRigidTransform', '.1 .2 .3 .9 1 2 3'), 'scales', load_transform)
    for order in (0, 1):
        t = sitk.Euler3DTransform((4, 5, 6), .1, .2, .3, (1, 2, 3))
        t.SetComputeZYX(bool(order))
        path = tfm('CenteredEuler3DTransform', '.1 .2 .3 4 5 6 1 2 3', f'0 0 0 {order}')
        np.testing.assert_allclose(goes(load_transform(path)), goes(t), atol=1e-6)
    t = sitk.AffineTransform((0, -1, 0, 1, 0, 0, 0, 0, 1), (1, 2, 3), (4, 5, 6))
    path = tfm('Rigid3DTransform', '0 -1 0 1 0 0 0 0 1 1 2 3')
    np.testing.assert_allclose(goes(load_transform(path)), goes(t), atol=1e-6)


def test_hdf5_ends(monkeypatch):
    "A file that keeps the library busy ends with the limits of its process, and with those of the parent."
    assert 'RLIMIT_CPU, (10, 10)' in register._HDF5_READER and 'RLIMIT_AS' in register._HDF5_READER
    busy = register._HDF5_READER.split('import SimpleITK')[0].replace('(10, 10)', '(1, 1)') + 'while True: pass'
    monkeypatch.setattr(register, '_HDF5_READER', busy)
    sitk.WriteTransform(sitk.Euler3DTransform(), 'busy.h5')
    refused('busy.h5', 'damaged', load_transform)


def test_error_lines(capsys):
    "A name with a line break makes no second line; a list of series keeps its own."
    for text, lines in (('a\nb.nii: no', 1), ('x: choose one:\n  1: CT a\n  2: CT b\n  and 3 more, see --list', 4)):
        with pytest.raises(SystemExit), one_line_errors('fuse'): raise ValueError(text)
        assert len(capsys.readouterr().err.splitlines()) == lines
