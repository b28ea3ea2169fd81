"""DICOM files whose header says what cannot be, or what the pixels are not; what a derived series may say."""
import gzip
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import one_line
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless,
                         JPEGLosslessSV1, RLELossless)

from medfusion_nb import volume
from medfusion_nb.phantom import like
from medfusion_nb.volume import find_series, phantom_study, read_volume, write_dicom


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A small phantom study."
    folder = tmp_path_factory.mktemp('made')/'study'
    phantom_study(folder, size=(24, 20, 6), spacing=(9, 11, 26), seed=3)
    return folder


@pytest.fixture
def study(made, tmp_path): return shutil.copytree(made, tmp_path/'study')


def slices(folder): return sorted(folder.iterdir())


def spoil(path, keyword, value, vr=None):
    "Put bytes into an element as they are; None takes it out."
    ds, tag = pydicom.dcmread(path), tag_for_keyword(keyword)
    if tag in ds: del ds[tag]
    if value is not None:
        value += b' '*(len(value) % 2)
        ds[tag] = RawDataElement(pydicom.tag.Tag(tag), vr or dictionary_VR(tag), len(value), value, 0, False, True)
    ds.save_as(path)


# pixels

def stored(path): return volume._stored(path)[0]


def encoded(path, syntax, pixels=None, **tags):
    "A slice in another transfer syntax; values for the header."
    ds = pydicom.dcmread(path)
    if pixels is not None: ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    for k, v in tags.items(): setattr(ds, k, v)
    if syntax == RLELossless: ds.compress(RLELossless)
    elif syntax in COMPRESSORS: ds.PixelData = encapsulate([by_itk(ds, COMPRESSORS[syntax], path)])
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, '<u2').astype('>u2').tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    known = syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian)
    how = dict(implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian) if known else {}
    pydicom.dcmwrite(path, ds, **how)
    return path


COMPRESSORS = {JPEG2000Lossless: 'JPEG2000', JPEGLosslessSV1: 'JPEG'}


def by_itk(ds, compressor, path):
    "A frame compressed by GDCM."
    image = sitk.GetImageFromArray(ds.pixel_array[None])
    sitk.WriteImage(image, str(path), True, imageIO='GDCMImageIO', compressor=compressor)
    written = pydicom.dcmread(path)
    return next(generate_frames(written.PixelData, number_of_frames=1))


NATIVE = [pydicom.uid.ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
          DeflatedExplicitVRLittleEndian]
SYNTAXES = [*NATIVE, RLELossless, *COMPRESSORS]


@pytest.mark.parametrize('syntax', SYNTAXES, ids=lambda s: s.name[:24])
@pytest.mark.parametrize('signed', [False, True])
def test_pixels_are_whole_or_refused(study, syntax, signed):
    "The values come back in every syntax; half of them, or the header of a larger image, is an error."
    path = slices(study/'CT')[2]
    pixels = np.random.default_rng(0).integers(-2000 if signed else 0, 2047, (20, 24)).astype('i2' if signed else 'u2')
    encoded(path, syntax, pixels, PixelRepresentation=int(signed), BitsStored=12, HighBit=11)
    found = stored(path)
    np.testing.assert_array_equal(found[0], pixels)
    assert found.dtype == pixels.dtype

    ds = pydicom.dcmread(path)
    whole = ds.PixelData
    for keyword in ('Rows', 'Columns', 'NumberOfFrames'):
        ds = pydicom.dcmread(path)
        setattr(ds, keyword, 2*(ds.get(keyword) or 1))
        ds.save_as(study/'big.dcm')
        with pytest.raises(ValueError, match='cannot decode .*big.dcm'): stored(study/'big.dcm')
    (study/'big.dcm').unlink()
    ds = pydicom.dcmread(path)
    if syntax in NATIVE: ds.PixelData = whole[:len(whole)//2]
    else: ds.PixelData = encapsulate([next(generate_frames(whole, number_of_frames=1))[:-200]])
    ds.save_as(path)
    with pytest.raises(ValueError, match=rf'cannot decode .*{path.name}'): read_volume(study, 'CT')
    path.write_bytes(path.read_bytes()[:-100]) # a file that ends early
    with pytest.raises(ValueError, match=path.name): read_volume(study, 'CT')


PUBLIC = Path(pydicom.__file__).parent/'data'/'test_files'


@pytest.mark.parametrize('name', ['JPGExtended', 'MR_small_jpeg_ls_lossless', 'JPEGLSNearLossless_16',
                                  'MR_small_jp2klossless', 'J2K_pixelrep_mismatch', 'MR_small_RLE'])
def test_streams_cut_in_their_middle(name, tmp_path, capfd):
    "The end mark alone does not make a stream whole."
    path = tmp_path/'cut.dcm'
    ds = pydicom.dcmread(PUBLIC/f'{name}.dcm')
    ds.save_as(path)
    shape, data = stored(path).shape, next(generate_frames(ds.PixelData, number_of_frames=1)).rstrip(b'\0')
    assert shape == (1, ds.Rows, ds.Columns)
    cuts = [data[:len(data)//2] + data[-2:], data[:len(data)//2] + data[len(data)//2 + 80:], data[:60] + data[-2:]]
    for cut in cuts:
        ds.PixelData = encapsulate([cut])
        ds.save_as(path)
        with pytest.raises(ValueError, match='cut.dcm'): stored(path)
    assert capfd.readouterr().err == ''


def test_a_frame_short_of_many(made, tmp_path):
    "Two frames announced, one and a half there, or three."
    path = tmp_path/'two.dcm'
    ds = pydicom.dcmread(slices(made/'CT')[0])
    one = ds.PixelData
    for syntax in (ds.file_meta.TransferSyntaxUID, RLELossless):
        for data, fine in ((one*2, True), (one + one[:len(one)//2], False), (one*3, False)):
            ds = pydicom.dcmread(slices(made/'CT')[0])
            ds.PixelData, ds.NumberOfFrames = data, 2
            if syntax == RLELossless:
                ds.NumberOfFrames = len(data)//len(one)
                ds.compress(RLELossless)
                ds.NumberOfFrames = 2
            ds.save_as(path)
            if fine: assert len(stored(path)) == 2
            else:
                with pytest.raises(ValueError, match='cannot decode .*two.dcm'): stored(path)


def test_a_few_bytes_more_are_said(study):
    "Padding is left out and noted; another image behind the first is refused."
    path = slices(study/'CT')[1]
    before = sitk.GetArrayFromImage(read_volume(study, 'CT').image)
    ds = pydicom.dcmread(path)
    ds.PixelData += b'\1'*6
    ds.save_as(path)
    scan = read_volume(study, 'CT')
    assert '1 file is longer than its pixels' in scan.notes[0] and path.name not in str(scan.notes)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan.image), before)
    ds.PixelData += ds.PixelData
    ds.save_as(path)
    with pytest.raises(ValueError, match=path.name): read_volume(study, 'CT')


def test_bits_that_do_not_count(made, tmp_path):
    "An overlay above the stored bits, and pixels that do not begin at the lowest bit."
    rng = np.random.default_rng(0)
    values = rng.integers(-2048, 2048, (20, 24)).astype('i2')
    overlay = rng.integers(0, 16, values.shape).astype('u2') << 12
    path = tmp_path/'a.dcm'
    for signed in (True, False):
        want = values if signed else values.astype('u2') & 0xfff
        for high, pixels in ((11, (values.view('u2') & 0xfff) | overlay), (15, values.view('u2') << 4)):
            shutil.copy(slices(made/'CT')[0], path)
            encoded(path, NATIVE[0], pixels, BitsStored=12, HighBit=high, PixelRepresentation=int(signed))
            np.testing.assert_array_equal(stored(path)[0], want)


@pytest.mark.parametrize('modality', ['CT', 'MR'])
def test_slope_and_intercept_of_each_slice(study, modality):
    "Also in MRI, and where they change from slice to slice."
    for k, path in enumerate(slices(study/modality)):
        ds = pydicom.dcmread(path)
        ds.RescaleSlope, ds.RescaleIntercept = str(1 + .5*k), str(-1000 - k)
        ds.save_as(path)
    found = read_volume(study, modality, hu=False)
    values = [h.RescaleSlope*pydicom.dcmread(h.filename).pixel_array + float(h.RescaleIntercept) for h in found.headers]
    if modality == 'CT': values = np.maximum(values, -1024)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found.image), np.float32(values))


# headers

def item(data): return struct.pack('<HHI', 0xfffe, 0xe000, len(data)) + data


def nested(n, defined):
    "A sequence in a sequence in a sequence, n deep, with lengths or without."
    if not defined: return b'\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff'*n
    data = b''
    for _ in range(n): data = struct.pack('<HH2sHI', 8, 0x1140, b'SQ', 0, len(item(data))) + item(data)
    return data


NESTED = item(nested(3000, True))
BAD = dict(
    Rows=(None, b'', b'\0\0', b'\x14\0\x14\0', ('LO', b'twenty'), ('LO', b'20'),
          ('SQ', b'\xfe\xff\0\xe0\4\0\0\0abcd'), b'\1'),
    Columns=(None, b'\0\0'),
    NumberOfFrames=(b'0', b'-1', b'2000000', b'1e9', b'abc', b'1\\2', b'99999999999999999999', b'7'),
    BitsAllocated=(None, b'\0\0', b'\x0c\0', b'\1\0', b'\x40\0'), BitsStored=(b'\0\0', b'\x11\0'),
    HighBit=(b'\x10\0', b'\3\0'), PixelRepresentation=(None, b'\2\0'), SamplesPerPixel=(b'\3\0',),
    PixelSpacing=(b'0\\0', b'-1\\1', b'1', b'1\\2\\3', b'nan\\1', b'1e30\\1',
                  b'inf\\1', b'1e-30\\1', b'a\\b', ('FD', b'\0'*7)),
    ImagePositionPatient=(b'0\\0', b'1e300\\0\\0', b'nan\\0\\0', b'1,5\\0\\0', b'1e999\\0\\0'),
    ImageOrientationPatient=(b'1\\0\\0', b'0\\0\\0\\0\\0\\0', b'2\\0\\0\\0\\2\\0', b'nan\\0\\0\\0\\1\\0'),
    BodyPartExamined=(('SQ', NESTED), ('OB', b'1234')), SeriesDescription=(('SQ', NESTED),),
    PatientID=(('SQ', NESTED),),
    RescaleSlope=(b'0', ('SQ', NESTED), b'abc', b'1\\2', b'nan', b'1e400', ('SQ', b'1234')),
    RescaleIntercept=(b'x', b'1\\2', b'-inf'),
    SeriesInstanceUID=(None, b'', b'1.2\\1.3', b'1'*3000), Modality=(b'CT\\MR', b'C\x1b[31mT'),
    PhotometricInterpretation=(b'A\\B', b'RGB', ('US', b'\1\0')), SOPInstanceUID=(b'1.2\\1.3',),
    PerFrameFunctionalGroupsSequence=(('LO', b'abc'), ('SQ', b'\xfe\xff\0\xe0\xff\xff\xff\xff'*3)))


@pytest.mark.parametrize('keyword', BAD)
def test_a_value_that_cannot_be_names_its_file(made, tmp_path, keyword):
    "One line, for a header that says it of all slices or of one."
    for value in BAD[keyword]:
        study = shutil.copytree(made/'MR', tmp_path/'MR', dirs_exist_ok=True)
        vr, value = value if isinstance(value, tuple) else (None, value)
        for path in slices(study): spoil(path, keyword, value, vr)
        with pytest.raises(ValueError, match=r'MR\d{4}.dcm') as e: read_volume(study, 'MR')
        assert '\n' not in str(e.value) and str(e.value).isprintable() and len(str(e.value)) < 400, value


@pytest.mark.parametrize('where', ['before', 'after']) # the elements that count
def test_sequences_without_end(study, tmp_path, where):
    "Nesting that no stack holds is an error, or of no importance; never a traceback."
    path = slices(study/'CT')[1]
    raw = path.read_bytes()
    at = raw.index(b'\x08\0\x60\0CS' if where == 'before' else b'\xe0\x7f\x10\0O')
    path.write_bytes(raw[:at] + nested(20_000, False) + raw[at:])
    with pytest.raises(ValueError, match=path.name): read_volume(study, 'CT')
    path.write_bytes(raw[:at] + nested(5_000, True) + raw[at:])
    scan = read_volume(study, 'CT')
    (tmp_path/'out').mkdir()
    write_dicom(like(np.zeros((6, 20, 24), np.float32), scan.image), tmp_path/'out', scan)


def test_patient_elements_that_cannot_be_written(study, tmp_path):
    "They are left out with a warning; the rest of the patient is kept."
    for path in slices(study/'CT'):
        spoil(path, 'PatientWeight', b'heavy')
        spoil(path, 'KVP', b'1\\x')
        spoil(path, 'SpecificCharacterSet', b'LATIN-X')
        spoil(path, 'PatientComments', b'M\xfcller\xff')
        spoil(path, 'OtherPatientIDsSequence', NESTED, 'SQ')
    scan = read_volume(study, 'CT')
    (tmp_path/'out').mkdir()
    with pytest.warns(UserWarning, match='cannot be and is not copied') as said:
        [first, *_] = write_dicom(like(np.zeros((6, 20, 24), np.float32), scan.image), tmp_path/'out', scan)
    ours = [str(w.message) for w in said if 'is not copied' in str(w.message)]
    assert len(ours) == 3 and 'heavy' not in str(ours)
    ds = pydicom.dcmread(first)
    assert ds.PatientID == 'PHANTOM' and 'PatientWeight' not in ds and ds.KVP is None
    assert b'M\xfcller\xff' in first.read_bytes()


def test_a_claim_of_sizes_is_refused(made, tmp_path):
    "It costs neither time nor memory."
    path = shutil.copy(slices(made/'CT')[0], tmp_path/'a.dcm')
    spoil(path, 'Rows', struct.pack('<H', 65535))
    spoil(path, 'Columns', struct.pack('<H', 65535))
    for syntax in (*NATIVE[:2], RLELossless, JPEG2000Lossless):
        ds = pydicom.dcmread(path)
        data = ds.PixelData
        if syntax not in NATIVE: ds.PixelData = encapsulate([data])
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(tmp_path/'b.dcm', implicit_vr=syntax.is_implicit_VR, little_endian=True)
        with pytest.raises(ValueError, match='cannot decode .*b.dcm'): stored(tmp_path/'b.dcm')


# what a derived series says

def derived(scan, other, folder, **kwargs):
    "First slice of a derived series."
    folder.mkdir()
    image = like(np.zeros((6, 20, 24), np.float32), scan.image)
    return pydicom.dcmread(write_dicom(image, folder, scan, other, **kwargs)[0])


def test_no_memory_for_what_a_few_bytes_claim(made, tmp_path):
    "An element of four gigabytes in a file of two kilobytes; 300 MB of zeros, deflated."
    folder = shutil.copytree(made/'CT', tmp_path/'CT')
    first, second = slices(folder)[:2]
    data = first.read_bytes()
    first.write_bytes(data[:data.index(b'\x18\0\x15\0')] + b'\x18\0\x01\0UN\0\0\xf0\xff\xff\xff' + b'x'*50)
    encoded(second, DeflatedExplicitVRLittleEndian)
    data = second.read_bytes()
    begin = 144 + pydicom.dcmread(second).file_meta.FileMetaInformationGroupLength
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    second.write_bytes(data[:begin] + deflate.compress(b'\xe0\x7f\x10\0OW\0\0\0\0\0\x20' + bytes(3*10**8)) + deflate.flush())
    for path, why in (first, 'no image in it'), (second, 'bytes unpack to more than'):
        tracemalloc.start()
        with pytest.raises(ValueError, match=why) as e: find_series(path)
        said = str(e.value)
        assert path.name in said and '\n' not in said and tracemalloc.get_traced_memory()[1] < 2**27
        tracemalloc.stop()


def test_what_sources_say_of_their_pixels_is_kept(study, tmp_path):
    "Of either source, of any slice; nothing is cleaned here, so nothing says so."
    last = slices(study/'MR')[-1]
    FLAGS = 'BurnedInAnnotation', 'RecognizableVisualFeatures'
    for path in (p for kind in ('CT', 'MR') for p in slices(study/kind)):
        for k in FLAGS: spoil(path, k, b'NO')
        spoil(path, 'LossyImageCompression', b'00')
    def said(name, **kwargs):
        ct, mr = (read_volume(study, m) for m in ('CT', 'MR'))
        ds, ds2 = derived(ct, mr, tmp_path/name, **kwargs), derived(mr, ct, tmp_path/f'{name}2', **kwargs)
        found = [ds.get(k) for k in (*FLAGS, 'LossyImageCompression', 'PatientIdentityRemoved')]
        assert found == [ds2.get(k) for k in (*FLAGS, 'LossyImageCompression', 'PatientIdentityRemoved')]
        return found
    assert said('clean') == ['NO', 'NO', '00', None]
    assert said('clean_nameless', deidentify=True) == ['NO', 'NO', '00', 'YES']
    for k in FLAGS: spoil(last, k, None)
    spoil(last, 'LossyImageCompression', None)
    assert said('unknown', deidentify=True) == [None, None, None, 'YES']
    for k in FLAGS: spoil(last, k, b'YES')
    spoil(last, 'LossyImageCompression', b'01')
    spoil(last, 'LossyImageCompressionRatio', b'7.5')
    spoil(last, 'LossyImageCompressionMethod', b'ISO_15444_1')
    for hidden in (False, True):
        assert said(f'burned{hidden}', deidentify=hidden) == ['YES', 'YES', '01', 'NO' if hidden else None]
        ds = pydicom.dcmread(tmp_path/f'burned{hidden}'/'0001.dcm')
        assert (ds.LossyImageCompressionRatio, ds.LossyImageCompressionMethod) == (7.5, 'ISO_15444_1')
    nifti = read_volume(study, 'CT')._replace(headers=[])
    assert derived(read_volume(study, 'MR'), nifti, tmp_path/'nifti').BurnedInAnnotation == 'YES'
    assert 'not cleaned' in str(ds.DeidentificationMethod)


SECRET = 'ZYXSECRET'
TEXT = 'AE AS CS DA DT LO LT PN SH ST TM UC UR UT'.split()


def planted(ds):
    "Every text element of the dictionary says the secret, private ones and sequences too."
    from pydicom._dicom_dict import DicomDictionary
    keep = {'SpecificCharacterSet', 'ImageType', 'Modality', 'PhotometricInterpretation', 'RescaleType'}
    block = ds.private_block(0x11, SECRET, create=True)
    block.add_new(1, 'LO', SECRET)
    for tag, (vr, vm, name, retired, keyword) in DicomDictionary.items():
        if vr in TEXT and keyword not in keep and tag >> 16 not in (0, 2, 4, 0x7fe0, 0xfffe) and vm[0] == '1':
            ds[tag] = RawDataElement(pydicom.tag.Tag(tag), vr, len(SECRET) + 1, SECRET.encode() + b' ', 0, False, True)
    return ds


def test_deidentified_output_holds_no_text_of_the_sources(study, tmp_path, here):
    "A word in every text of every header is in no byte of what is written, and not on the screen."
    item = planted(Dataset())
    for path in (p for kind in ('CT', 'MR') for p in slices(study/kind)):
        ds = planted(pydicom.dcmread(path))
        ds.OtherPatientIDsSequence = [item]
        ds.save_as(path)
    ds = derived(read_volume(study, 'CT'), None, tmp_path/'named')
    assert ds.PatientID == ds.PatientPosition == ds.BodyPartExamined == SECRET # it would be found
    code, out, err = here('medfusion_fuse', study/'CT', study/'MR', '-o', tmp_path/'fused', '--deidentify', '--png',
                          '--figure', '--contact-sheet', '--register', 'never')
    assert code == 0, err
    assert SECRET not in (out + err).upper()
    files = [p for p in (tmp_path/'fused').rglob('*') if p.is_file()]
    assert {p.suffix for p in files} == {'.gz', '.dcm', '.json', '.png'}
    for path in files:
        data = path.read_bytes()
        if path.suffix == '.gz': data = gzip.decompress(data)
        assert SECRET.encode() not in data.upper(), path
    assert 'OTHER' in (tmp_path/'fused'/'medfusion.json').read_text()


def test_a_command_says_it_in_one_line(study, here):
    "With the name of the file and exit code 2; a list of series marks the damaged one."
    path = slices(study/'CT')[3]
    spoil(path, 'RescaleSlope', b'abc')
    code, out, err = here('medfusion_fuse', study/'CT', study/'MR', '-o', 'out', '--register', 'never')
    assert (code, out) == (2, '') and f'{path.name}: RescaleSlope is abc' in one_line(err), err
    code, out, err = here('medfusion_fuse', study/'CT', study/'MR', '--list')
    assert (code, err, out.count('damaged')) == (0, '', 1), out + err


def test_a_description_is_harmless_in_a_terminal(study):
    "Control characters and what is longer than the standard allows are not shown."
    for path in slices(study/'MR'): spoil(path, 'SeriesDescription', b'T1 \x1b[31mRED\x07' + b'x'*500)
    [mr] = [s for s in find_series(study) if s.modality == 'MR']
    assert str(mr).isprintable() and len(str(mr)) < 150 and 'T1 [31mRED' in str(mr)


def test_bits_that_do_not_count_are_said(study):
    "Real numbers are refused by what they are."
    path = slices(study/'MR')[2]
    encoded(path, NATIVE[0], np.full((20, 24), 700, 'u2'), BitsStored=8, HighBit=7)
    assert 'BitsStored) were left out in 1 file' in str(read_volume(study/'MR').notes)
    ds = pydicom.dcmread(path)
    ds.FloatPixelData = bytes(4*20*24)
    del ds.PixelData
    ds.save_as(path)
    with pytest.raises(ValueError, match='its pixels are real numbers'): stored(path)


def test_a_table_of_values_is_refused(study):
    ds = pydicom.dcmread(path := slices(study/'MR')[2])
    ds.ModalityLUTSequence = [Dataset()]
    ds.save_as(path)
    with pytest.raises(ValueError, match='by a table'): read_volume(study/'MR')
