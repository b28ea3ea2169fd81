"DICOM series as they are met: slices missing, turned, twice, without preamble, in frames, among other files."
import io
import json
import shutil
import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import one_line
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from medfusion_nb.phantom import like, make_grid
from medfusion_nb.study import align, fuse_study, record
from medfusion_nb.volume import (choose_series, find_series, is_volume, list_series, read_series, read_volume,
                                 write_original)

N = 6 # slices, where nothing else is said


def volume(step=2.5, n=N):
    "A volume whose slices all differ; the value of a voxel tells its slice."
    grid = make_grid((8, 10, n), (3, 2, step), (0, 0, 0))
    z, y, x = np.indices((n, 10, 8))
    return like((100*z + 5*y + x).astype(np.float32), grid)


def series(folder, step=2.5, n=N, drop=(), change=None, **tags):
    "Write it as an MRI without some slices; `change` alters the header of a slice by its number."
    tags = dict(SeriesInstanceUID=generate_uid()) | tags
    for k, p in enumerate(write_original(volume(step, n), folder, 'MR', **tags)):
        if k in drop: p.unlink()
        elif change: edit(p, change, k)
    return folder


def edit(path, change, *args):
    ds = pydicom.dcmread(path)
    change(ds, *args)
    ds.save_as(path)


def read(path, **kwargs):
    "The values and the scan, without a warning."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        scan = read_volume(path, **kwargs)
    return sitk.GetArrayFromImage(scan.image), scan


def whole(path, **kwargs):
    "Asserts that the volume is read whole; gives its notes."
    values, scan = read(path, **kwargs)
    np.testing.assert_array_equal(values, sitk.GetArrayFromImage(volume()))
    np.testing.assert_allclose(scan.image.GetOrigin(), volume().GetOrigin(), atol=1e-4)
    return scan.notes


# slices that are missing

@pytest.mark.parametrize('step, drop', [(.2, [5]), (1, [3, 4, 5]), (6, [4, 6]), (2.5, [8])])
def test_missing_slices_are_refused_whatever_the_step(tmp_path, step, drop):
    series(tmp_path/'s', step, n := 10, drop=drop)
    with pytest.raises(ValueError, match=r'slices are missing: .*MR00\d\d.dcm.*--allow-gaps'):
        read_volume(tmp_path/'s')
    values, scan = read(tmp_path/'s', allow_gaps=True)
    assert values.shape[0] == n and len(scan.gaps) == 1 + (drop == [4, 6]) == len(scan.notes)
    kept = [k for k in range(n) if k not in drop]
    np.testing.assert_allclose(values[kept], sitk.GetArrayFromImage(volume(step, n))[kept], atol=.1)
    for k in drop: assert any(a < k < b for a, b in scan.gaps)
    for k in kept: assert not any(a < k < b for a, b in scan.gaps)


@pytest.mark.parametrize('steps', [[2.5]*4 + [5]*4, [5]*3 + [2.5]*3 + [5]*3, [4]*3 + [1.08] + [7]*4,
                                   [3, 3.2, 2.9, 3, 3.1]])
def test_uneven_series_are_read_with_a_note(tmp_path, steps):
    depth = np.cumsum([0, *steps])
    def place(ds, k): ds.ImagePositionPatient = [0, 0, depth[k]]
    _, scan = read(series(tmp_path/'s', n=len(depth), change=place))
    assert 'uneven steps' in str(scan.notes) and scan.gaps == ()


def test_numbers_tell_of_every_second_slice_that_is_missing(tmp_path):
    series(tmp_path/'s', 1, 15, drop=[4, 6, 8, 10])
    with pytest.raises(ValueError, match='at 3 other places'): read_volume(tmp_path/'s')
    for k, p in enumerate(sorted((tmp_path/'s').iterdir())): # numbered anew: a stretch of thick slices
        edit(p, lambda ds, k: setattr(ds, 'InstanceNumber', k + 1), k)
    assert 'uneven steps' in str(read(tmp_path/'s')[1].notes)


@pytest.mark.parametrize('drop, tags, note', [
    ([0, 1], {}, 'first image has number 3'), ([5], dict(ImagesInAcquisition=6), '6 images, 5 are there'),
    ([0], dict(NumberOfSeriesRelatedInstances=6), 'tell of 6 images, 5'), ([5], {}, None)])
def test_a_slice_missing_at_an_end_is_said_where_the_headers_tell(tmp_path, drop, tags, note):
    notes = read(series(tmp_path/'s', drop=drop, **tags))[1].notes
    assert note in str(notes) if note else not notes


def test_slice_locations_that_contradict_are_said(tmp_path):
    def place(ds, k): ds.SliceLocation = str(5.*k + 5*(k > 4))
    notes = read(series(tmp_path/'s', n=9, change=place))[1].notes
    assert 'SliceLocation of the slices there is a gap of 10.0 mm' in str(notes)


class Mean:
    window, batch_size = (40., 80.), 16
    def __call__(self, ct, mri): return (np.asarray(ct) + np.asarray(mri))/2
    def attention(self, ct, mri): return {}


def test_in_a_gap_the_other_scan_stands_alone(tmp_path):
    whole = volume(5, 10)
    series(tmp_path/'a', 5, 10, drop=[4, 5, 6])
    upside_down = like(sitk.GetArrayFromImage(whole)[::-1], whole)
    write_original(upside_down, tmp_path/'b', 'MR')
    scans = [read(tmp_path/k, allow_gaps=True)[1] for k in 'ab']
    study = fuse_study(align(*scans, register='never'), Mean())
    fused, a, b = (sitk.GetArrayFromImage(v) for v in (study.fused, study.ct, study.mri))
    assert np.abs(a - b)[4:7].max() > .05
    np.testing.assert_array_equal(fused[4:7], b[4:7])
    np.testing.assert_allclose(fused[[1, 9]], (a + b)[[1, 9]]/2, atol=1e-6)
    said = json.loads(json.dumps(record(study, False)))
    assert said['gaps_mm'] == {'MRI 1': [[17.5, 32.5]]}
    assert 'slices are missing from 17.5 to 32.5 mm' in str(said['notes'])


def test_the_command_names_the_gap_and_the_way_on(tmp_path, here):
    series(tmp_path/'s', n=9, drop=[5])
    code, out, err = here('medfusion_fuse', 's', 's')
    assert (code, out) == (2, '') and 'MR0004.dcm and MR0006.dcm' in one_line(err) and '--allow-gaps' in err


# one series

def test_directions_that_round_differently_are_one_series(tmp_path):
    def turn(ds, k):
        if not k % 3: ds.ImageOrientationPatient = [1, .0050004, 0, -.0050004, 1, 0]
    _, scan = read(series(tmp_path/'s', change=turn))
    assert scan.image.GetSize()[2] == N and not scan.gaps
    for other in (.0049996, .0050004): # both sides of where rounding to two digits turns over
        def one(ds, k): ds.ImageOrientationPatient = [1, other if k == N - 1 else .0049996, 0, -.005, 1, 0]
        assert read(series(tmp_path/str(other), change=one))[1].image.GetSize()[2] == N


def test_what_differs_in_a_series_is_apart_and_said(tmp_path):
    def turn(ds, k):
        if k == N - 1: ds.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    found = find_series(series(tmp_path/'turned', change=turn))
    assert [len(s.slices) for s in found] == [N - 1, 1]
    rest = 'not in this volume, though of the same series: 8 x 10, 1 slice'
    assert rest in str(read(tmp_path/'turned')[1].notes)
    def planes(ds, k):
        ds.ImageOrientationPatient = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]][k % 3]
    assert [len(s.slices) for s in find_series(series(tmp_path/'three', change=planes))] == [2, 2, 2]
    def shape(ds, k):
        if k > 3: ds.PixelSpacing = [4, 4]
    assert [len(s.slices) for s in find_series(series(tmp_path/'shape', change=shape))] == [4, 2]


# echoes, phases, copies

def doubled(folder, first=(), second=(), n=2):
    "Two sets of images in one series, the second brighter; their headers differ in some elements."
    uid = generate_uid()
    for j, tags in enumerate((dict(first), dict(second))[:n]):
        image = like(sitk.GetArrayFromImage(volume()) + 20*j, volume())
        write_original(image, folder/str(j), 'MR', SeriesInstanceUID=uid, SeriesDescription='T2', **tags)
    return folder


SETS = [('EchoTime', '9', '80', 'T2 echo 2'), ('EchoNumbers', 1, 2, 'T2 echo 2'),
        ('TemporalPositionIdentifier', 1, 2, 'T2 phase 2'), ('AcquisitionNumber', 4, 5, 'T2 acquisition 5'),
        ('ImageType', ['ORIGINAL', 'PRIMARY', 'M'], ['ORIGINAL', 'PRIMARY', 'P'], 'T2 P'),
        ('DiffusionBValue', 0., 1000., 'T2 b 1000'), ('TriggerTime', '95.5', '120', 'T2 phase 2')]


@pytest.mark.parametrize('keyword, a, b, name', SETS, ids=[s[0] for s in SETS])
def test_sets_of_one_series_are_apart(tmp_path, keyword, a, b, name):
    doubled(tmp_path/'s', {keyword: a}, {keyword: b})
    with pytest.raises(ValueError, match='2 MR series fit'): read_volume(tmp_path/'s', 'MR')
    for pick in (name, '2'):
        values, scan = read(tmp_path/'s', modality='MR', series=pick)
        np.testing.assert_array_equal(values, sitk.GetArrayFromImage(volume()) + 20)
    assert 'not in this volume, though of the same series' in str(scan.notes)
    np.testing.assert_array_equal(read(tmp_path/'s', series='1')[0], sitk.GetArrayFromImage(volume()))


def test_echoes_in_phases_and_times_that_differ_from_slice_to_slice(tmp_path):
    uid = generate_uid()
    for e in (1, 2):
        for t in (1, 2, 3):
            def own(ds, k): ds.AcquisitionTime, ds.ContentTime = f'1200{k:02}', f'12{e}{t}{k:02}'
            series(tmp_path/f's/{e}{t}', change=own, SeriesInstanceUID=uid, EchoTime=str(9*e),
                   TemporalPositionIdentifier=t, SeriesDescription='x')
    names = [f'x echo {e} phase {t}' for e in (1, 2) for t in (1, 2, 3)]
    assert [s.description for s in find_series(tmp_path/'s')] == names


def test_what_nothing_tells_apart_is_refused_with_a_way_that_works(tmp_path):
    doubled(tmp_path/'s')
    with pytest.raises(ValueError, match='copy one of each into a folder of their own'): read_volume(tmp_path/'s')
    shutil.copytree(tmp_path/'s/0', tmp_path/'own')
    assert whole(tmp_path/'own') == []


def test_copies_are_used_once(tmp_path):
    series(tmp_path/'s')
    shutil.copytree(tmp_path/'s', tmp_path/'s'/'again')
    assert whole(tmp_path/'s') == ['copies of other files were not used: 6']
    copy = tmp_path/'s/again/MR0003.dcm'
    edit(copy, lambda ds: ds.add_new('InstanceCreationTime', 'TM', '101010')) # other bytes, the same image
    assert whole(copy.parent) == [] and whole(tmp_path/'s') == ['copies of other files were not used: 6']
    def brighter(ds): ds.PixelData = (ds.pixel_array + 1).astype(np.uint16).tobytes()
    edit(copy, brighter)
    with pytest.raises(ValueError, match='MR0003.dcm are one image by .*, and their pixels differ'):
        read_volume(tmp_path/'s')


# frames

def frames(files, to, frame_tags=None, **tags):
    "Some single-frame files as one enhanced file."
    parts = [pydicom.dcmread(f) for f in files]
    ds, more = pydicom.dcmread(files[0]), frame_tags or {}
    def item(**tags):
        out = Dataset()
        for k, v in tags.items(): setattr(out, k, v)
        return out
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.4.1'
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.NumberOfFrames = len(files)
    ds.SharedFunctionalGroupsSequence = [item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=ds.ImageOrientationPatient)],
        PixelMeasuresSequence=[item(PixelSpacing=ds.PixelSpacing)])]
    ds.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=p.ImagePositionPatient)], **more.get(k, {}))
        for k, p in enumerate(parts)]
    for k in ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing'): del ds[k]
    for k, v in tags.items(): setattr(ds, k, v)
    ds.PixelData = b''.join(p.PixelData for p in parts)
    to.parent.mkdir(exist_ok=True)
    ds.save_as(to)
    return item


@pytest.mark.parametrize('size', [1, 2, 6])
def test_an_enhanced_series_over_several_files_is_one_volume(tmp_path, size):
    files = sorted(series(tmp_path/'s').iterdir())[::-1]
    mixed = files[::2] + files[1::2] # neighbours lie in different files
    for i in range(0, N, size): frames(mixed[i:i + size], tmp_path/'e'/f'{i}', InstanceNumber=i + 1)
    assert len(find_series(tmp_path/'e')) == 1
    assert whole(tmp_path/'e') == whole(tmp_path/'e'/'0') == []


def test_echoes_of_an_enhanced_file_are_apart(tmp_path):
    files = sorted(doubled(tmp_path/'s').glob('*/*'))
    item = frames(files[:1], tmp_path/'x'/'x')
    echo = {k: dict(MREchoSequence=[item(EffectiveEchoTime=[20., 9.][k < N])]) for k in range(2*N)}
    frames(files, tmp_path/'e'/'e.dcm', echo, SeriesDescription='T2')
    found = find_series(tmp_path/'e')
    assert [(s.description, len(s.slices)) for s in found] == [('T2 echo 1', N), ('T2 echo 2', N)]
    values, _ = read(tmp_path/'e'/'e.dcm', series='echo 2')
    np.testing.assert_array_equal(values, sitk.GetArrayFromImage(volume()) + 20)
    for j in (0, 1): frames(files[j*N:][:N], tmp_path/'two'/f'{j}.dcm', SeriesDescription='T2')
    assert [s.description for s in find_series(tmp_path/'two')] == ['T2 file 1', 'T2 file 2']


# files

def bare(path, syntax=None):
    "Write a file without its preamble, or with nothing but the data set."
    ds, to = pydicom.dcmread(path), io.BytesIO()
    if syntax is None: path.write_bytes(path.read_bytes()[132:])
    else:
        if syntax == ExplicitVRBigEndian: ds.PixelData = ds.pixel_array.astype('>u2').tobytes()
        del ds.file_meta
        pydicom.dcmwrite(to, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
        path.write_bytes(to.getvalue().removeprefix(bytes(128) + b'DICM'))


@pytest.mark.parametrize('syntax', [None, ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize('every', [1, 3])
def test_files_without_a_preamble(tmp_path, syntax, every):
    for p in sorted(series(tmp_path/'s').iterdir())[::every]: bare(p, syntax)
    first = tmp_path/'s'/'MR0000.dcm'
    assert not first.read_bytes().startswith(bytes(128))
    first = first.rename(tmp_path/'s'/'first') # known by its content
    assert is_volume(tmp_path/'s') and is_volume(first)
    assert whole(tmp_path/'s') == whole(first) == []


def test_a_stub_is_damaged_not_a_report(tmp_path):
    for p in series(tmp_path/'s').glob('*3.dcm'): cut(p, 132)
    with pytest.raises(ValueError, match='MR0003.dcm.*damaged'): read_volume(tmp_path/'s')


def test_a_slice_that_lost_its_image_and_its_kind_is_said(tmp_path):
    "Nothing in the positions tells that it is missing; what makers store beside their images looks like it."
    def spoil(ds, k):
        if k < N - 1: return
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = '1.3.12.2.1107.5.9.1'
        for keyword in ('Rows', 'Columns', 'PixelData'): delattr(ds, keyword)
    scan = read(series(tmp_path/'s', change=spoil))[1]
    assert scan.image.GetSize()[2] == N - 1
    assert scan.notes == ['files of this series without an image were passed over: 1']


@pytest.mark.parametrize('content', [b'', b'a text\n'*50, b'\x89PNG\r\n\x1a\n' + bytes(300), bytes(500),
                                     b'\b\0'*200, b'\2\0\0\0UL\4\0' + b'\xff'*300, 'Ȁ\0 text'.encode('utf-16-le')*40])
def test_other_files_are_not_taken_for_dicom(tmp_path, content):
    (tmp_path/'other').write_bytes(content)
    assert not is_volume(tmp_path) and not is_volume(tmp_path/'other')


def test_strays_are_passed_over_and_said(tmp_path):
    series(tmp_path/'s')
    for name in ('README', 'notes.txt', '.hidden.dcm'): (tmp_path/'s'/name).write_text('a text')
    assert whole(tmp_path/'s') == [] # nobody meant these
    (tmp_path/'s'/'x.dcm').write_text('a text')
    (tmp_path/'s'/'y.IMA').touch()
    passed = '2 files are empty, hidden or not DICOM and were passed over'
    with pytest.warns(UserWarning, match=f'{passed}, such as .*x.dcm'):
        scan = read_volume(tmp_path/'s')
    assert scan.notes == [passed] and scan.image.GetSize()[2] == N
    (tmp_path/'e').mkdir()
    shutil.copy(tmp_path/'s'/'y.IMA', tmp_path/'e')
    assert is_volume(tmp_path/'e')
    with pytest.raises(FileNotFoundError, match='no DICOM images in .*1 file is empty'): read_volume(tmp_path/'e')


def hide(p): p.rename(p.with_name(f'.{p.name}'))


def lose(p):
    p.unlink()
    p.symlink_to('nowhere')


def pack(p):
    p.unlink()
    p.with_name(f'{p.name}.gz').write_bytes(b'packed')


def preamble_only(p):
    cut(p, 100)
    p.rename(p.with_suffix('.img'))


@pytest.mark.parametrize('change', [hide, lose, pack, preamble_only])
def test_the_last_slice_is_no_file_any_more(tmp_path, change):
    "Nothing in the positions tells that it is missing."
    change(sorted(series(tmp_path/'s').iterdir())[-1])
    with pytest.warns(UserWarning, match='1 file is empty, hidden or not DICOM and was passed over'):
        scan = read_volume(tmp_path/'s')
    assert len(scan.notes) == 1 and scan.image.GetSize()[2] == N - 1


def cut(path, n): path.write_bytes(path.read_bytes()[:n])


def test_damage_counts_where_it_belongs(tmp_path):
    series(tmp_path/'s'/'a', SeriesDescription='a')
    series(tmp_path/'s'/'b', SeriesDescription='b')
    header = (tmp_path/'s'/'b'/'MR0005.dcm').read_bytes()
    before, after = header.find(b'HFS'), header.find(b'\x20\0\x13\0') + 3 # the identifier of its series
    for n in (before, after):
        cut(tmp_path/'s'/'b'/'MR0005.dcm', n)
        assert list_series(find_series(tmp_path/'s')).count('damaged') == 1
        with pytest.raises(ValueError, match='b/MR0005.dcm'): read_volume(tmp_path/'s', series='b')
        assert whole(tmp_path/'s', series='a') == ['a damaged file that is not of this series was passed over']
    shutil.move(tmp_path/'s'/'b'/'MR0005.dcm', tmp_path/'s')
    shutil.rmtree(tmp_path/'s'/'b')
    with pytest.warns(UserWarning, match='passed over: .*MR0005.dcm'):
        assert read_volume(tmp_path/'s').notes == ['a damaged file that is not of this series was passed over']


def test_a_series_whose_every_header_is_damaged_is_no_traceback(tmp_path):
    series(tmp_path/'s'/'bad', change=lambda ds, k: setattr(ds, 'ImagePositionPatient', [0, 0]))
    with pytest.raises(ValueError, match='MR0000.dcm: ImagePositionPatient'): read_volume(tmp_path/'s')
    series(tmp_path/'s'/'good')
    with pytest.warns(UserWarning, match='passed over: .*ImagePositionPatient'):
        assert read_volume(tmp_path/'s').image.GetSize()[2] == N


def test_the_picture_among_slices_is_named(tmp_path):
    def inverse(ds, k):
        if k == 5: ds.PhotometricInterpretation = 'MONOCHROME1'
    series(tmp_path/'s', change=inverse)
    with pytest.raises(ValueError, match='MR0005.dcm is MONOCHROME1'): read_volume(tmp_path/'s')


# which series

@pytest.mark.parametrize('said', ['', 'OT', 'XA'])
def test_a_series_that_does_not_say_what_it_is_can_be_picked(tmp_path, said):
    series(tmp_path/'s', Modality=said)
    found = find_series(tmp_path/'s')
    ways = ('CT', None, 'ct'), (None, 'CT', 'ct'), ('MR', 'MR', 'mri'), (None, 'MR', 'mri')
    for modality, prefer, option in ways:
        with pytest.raises(ValueError, match=rf'choose one .*\(--{option}-series\)'):
            choose_series(found, modality, prefer=prefer)
        for pick in ('1', 'phantom', found[0].uid): choose_series(found, modality, pick, prefer=prefer)
        scan = read_volume(tmp_path/'s', modality, '1', None, False, prefer)
        assert scan.modality == (modality or prefer) and f"its header says {said or 'nothing'}" in str(scan.notes)


def test_no_message_names_a_way_that_does_not_work(tmp_path):
    series(tmp_path/'s'/'pet', Modality='PT')
    for pick in (None, '1'):
        with pytest.raises(ValueError, match='none of these can be a CT:'):
            read_volume(tmp_path/'s', 'CT', series=pick)
        assert read_volume(tmp_path/'s', series=pick, prefer='CT').modality == 'PT' # taken for what it is
    series(tmp_path/'s'/'mr')
    series(tmp_path/'s'/'ot', Modality='OT')
    found = find_series(tmp_path/'s')
    with pytest.raises(ValueError, match=r'no CT series; choose .*, of 2:') as e: choose_series(found, 'CT')
    assert read_series(choose_series(found, 'CT', '2')).modality == 'OT', str(e)


def test_no_control_characters_reach_the_terminal(tmp_path):
    series(tmp_path/'s', SeriesDescription='T1 \x1b[31mred\r\n\x07 \u202eback',
           SpecificCharacterSet='ISO_IR 192')
    shown = list_series(find_series(tmp_path/'s'))
    assert shown.isprintable() and 'T1 [31mred back' in shown


# positions and numbers that contradict the rest

@pytest.mark.parametrize('at', [30, 3000, 99999])
def test_a_slice_that_lies_elsewhere_is_named(tmp_path, at):
    "It is no gantry tilt, and it costs no memory."
    def move(ds, k):
        if k == 3: ds.ImagePositionPatient[0] += at
    with pytest.raises(ValueError, match='MR0003.dcm lies .* beside the line of the other slices'):
        read_volume(series(tmp_path/'s', change=move))
    def far(ds, k):
        if k == N - 1: ds.ImagePositionPatient[2] = 99999
    def fine(ds, k):
        far(ds, k)
        ds.PixelSpacing = [.01, .01]
        if k == N - 1: ds.ImagePositionPatient[0] += 3
    assert read(series(tmp_path/'far', change=far), allow_gaps=True)[1].gaps
    with pytest.raises(ValueError, match='voxels: a position'):
        read_volume(series(tmp_path/'fine', .02, change=fine), allow_gaps=True)


@pytest.mark.parametrize('directions', [[.99, .069, -.122, -.036, .966, .258], [.999, 0, 0, 0, 1, 0]])
def test_directions_of_three_decimals_are_read(tmp_path, directions):
    "As numbers they are not quite at right angles; the volume is."
    row, column = np.reshape(directions, (2, 3))
    def turn(ds, k):
        ds.ImageOrientationPatient = directions
        ds.ImagePositionPatient = (k*2.5*np.cross(row, column)).round(3).tolist()
    values, scan = read(series(tmp_path/'s', change=turn))
    axes = np.reshape(scan.image.GetDirection(), (3, 3))
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(axes[:, 0], row, atol=2e-3)
    np.testing.assert_array_equal(values, sitk.GetArrayFromImage(volume()))
    assert scan.notes == []


@pytest.mark.parametrize('steps, numbers, missing', [
    ([1]*8 + [2]*11, [*range(1, 10), *range(11, 33, 2)], True), # every second one, in more than half
    ([2.5]*10 + [2.5] + [5]*10, [*range(1, 12), *range(101, 112)], False), # two blocks, numbered apart
    ([2]*9, [*range(1, 21, 2)], False)])                        # all of them odd
def test_numbers_and_steps_together(tmp_path, steps, numbers, missing):
    depth = np.cumsum([0, *steps])
    def place(ds, k): ds.ImagePositionPatient, ds.InstanceNumber = [0, 0, depth[k]], numbers[k]
    folder = series(tmp_path/'s', n=len(depth), change=place)
    if not missing: assert read(folder)[1].gaps == ()
    else:
        with pytest.raises(ValueError, match='slices are missing.* and at 10 other places'): read_volume(folder)


def test_without_numbers_the_thickness_tells(tmp_path):
    "Two missing slices side by side leave two steps of one length."
    def place(thick):
        def change(ds, k):
            del ds.InstanceNumber
            ds.SliceThickness = thick(k)
        return change
    with pytest.raises(ValueError, match='slices are missing'):
        read_volume(series(tmp_path/'s', 1, 20, [4, 6, 8], place(lambda k: 1)))
    thicker = place(lambda k: 2 if k in (5, 7) else 1)
    assert 'uneven' in str(read(series(tmp_path/'t', 1, 20, [4, 6, 8], thicker))[1].notes)


@pytest.mark.parametrize('keyword', ['RescaleSlope', 'RescaleIntercept'])
def test_a_slice_without_its_scale_is_named(tmp_path, keyword):
    def bare(ds, k):
        ds.RescaleSlope, ds.RescaleIntercept = 2, 10
        if k == 3: del ds[keyword]
    with pytest.raises(ValueError, match='MR0003.dcm does not say how its numbers are scaled'):
        read_volume(series(tmp_path/'s', change=bare))


def test_the_scale_of_a_ct_that_changes(tmp_path):
    def scaled(intercept):
        def change(ds, k):
            ds.Modality, ds.RescaleSlope, ds.RescaleIntercept = 'CT', 1, intercept if k == 3 else -1024
        return change
    notes = read(series(tmp_path/'s', change=scaled(-10)), hu=False)[1].notes
    assert notes == ['its slices are scaled differently (RescaleSlope, RescaleIntercept)']
    with pytest.raises(ValueError, match='MR0003.dcm holds values up to 1e.06, which no CT has'):
        read_volume(series(tmp_path/'t', change=scaled(10**6)))


def test_a_file_that_ends_before_it_says_what_it_is(tmp_path):
    "Its kind is cut in the middle, and is none of the standard."
    path = sorted(series(tmp_path/'s').iterdir())[-1]
    cut(path, path.read_bytes().index(b'1.2.840.10008.5.1.4') + 18)
    with pytest.raises(ValueError, match='MR0005.dcm .no image in it'): read_volume(tmp_path/'s')


def test_a_slice_without_the_number_of_its_patient(tmp_path):
    "It is the same patient by the name, and another one by another name."
    def nobody(ds, k):
        if k == 3: ds.PatientID = ''
    assert read(series(tmp_path/'s', change=nobody))[1].notes == []
    def other(ds, k):
        nobody(ds, k)
        if k == 3: ds.PatientName = 'Other^One'
    with pytest.raises(ValueError, match='files of 2 patients'): read_volume(series(tmp_path/'o', change=other))


def test_reconstructions_half_a_step_apart(tmp_path):
    def change(ds, k): ds.ConvolutionKernel = 'H30s' if k % 2 else 'H60s'
    found = find_series(series(tmp_path/'s', n=10, change=change))
    assert [len(s.slices) for s in found] == [5, 5] and 'kernel' in list_series(found)


@pytest.mark.parametrize('k', [3, N - 1])
def test_a_slice_under_another_identifier_is_said(tmp_path, k):
    def alone(ds, i):
        if i == k: ds.SeriesInstanceUID = '1.2.3.4'
    folder, said = series(tmp_path/'s', change=alone), 'another series is in line with this one: 8 x 10, 1 slice'
    if k == N - 1: assert said in str(read(folder)[1].notes)
    else:
        with pytest.raises(ValueError, match=said): read_volume(folder)


def test_no_text_of_a_header_is_in_a_note(tmp_path):
    def change(ds, k):
        ds.SeriesDescription, ds.Modality, ds.ContrastBolusAgent = 'SECRET', 'SECRET', 'SECRET'
        if k > 3: ds.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
        if k == 3: ds.ImagePositionPatient[2], ds.ContrastBolusAgent = 2.5, 'SECRET TOO'
    scan = read_volume(series(tmp_path/'s', change=change), 'MR', '1')
    assert 'SECRET' not in str(scan.notes) and len(scan.notes) > 1
