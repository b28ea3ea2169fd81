"""PET headers as GE, Philips and Siemens write them, and the SUV factors that published programs find for them.

`python suv_headers.py` computes the numbers again, where the programs are installed (in a place of their own: none is a
requirement of this package):

- mirp 2.7.0 (PyPI), `ImageDicomFilePT._to_gml_conversion_factor`, the reference implementation of the IBSI manual;
- pycerr 2.5.1 (PyPI), `Scan.convertToSUV`, called by `plan_container.loadDcmDir`: its values by those of the file;
- calculate-suv 1.1.0 (npm, @cornerstonejs), `calculateSUVScalingFactors`, which follows the pseudo-code of QIBA;
- platipy 0.7.2 (PyPI), `get_suv_bw_scale_factor`, the happy path of the same pseudo-code.

None in a column: the program refuses such a header, or does not know it.
"""
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

BASE = dict(Modality='PT', Units='BQML', CorrectedImage=['DECY', 'ATTN', 'SCAT'], DecayCorrection='START',
            Manufacturer='SIEMENS', PatientWeight='72.5', SeriesDate='20240102', SeriesTime='110105',
            AcquisitionDate='20240102', AcquisitionTime='110105', FrameReferenceTime='0',
            ActualFrameDuration='240000')
DOSE = dict(RadiopharmaceuticalStartTime='100320', RadionuclideTotalDose='348200000', RadionuclideHalfLife='6586.2',
            RadiopharmaceuticalStartDateTime='20240102100320')
LATE = dict(SeriesTime='153000') # when a workstation wrote the series again
GE, PHILIPS = dict(Manufacturer='GE MEDICAL SYSTEMS'), dict(Manufacturer='Philips Medical Systems')
MIDNIGHT = dict(SeriesDate='20240103', AcquisitionDate='20240103', SeriesTime='005000', AcquisitionTime='005000')

# name -> elements that differ from BASE and DOSE; private ones by creator, group and element
HEADERS = {
    'Siemens': {},
    'Siemens, written again, its own start': LATE | {('SIEMENS MED PT', 0x71, 0x22): '20240102110105.000000'},
    'Siemens, written again, second bed': LATE | dict(AcquisitionTime='110505', FrameReferenceTime='359747'),
    'GE': GE,
    'GE, written again, its own start': GE | LATE | {('GEMS_PETD_01', 0x09, 0x0d): '20240102110105.00'},
    'GE, written again': GE | LATE,
    'GE, written again, second bed': GE | LATE | dict(AcquisitionTime='110505', FrameReferenceTime='240000'),
    'Philips Bq/mL': PHILIPS,
    'Philips counts, SUV factor': PHILIPS | dict(Units='CNTS') | {('Philips PET Private Group', 0x7053, 0x00): '0.000618'},
    'Philips counts, activity factor': PHILIPS | dict(Units='CNTS') | {('Philips PET Private Group', 0x7053, 0x09): '1.732'},
    'corrected to the injection': dict(DecayCorrection='ADMIN'),
    'not corrected for decay': dict(DecayCorrection='NONE', CorrectedImage=['ATTN', 'SCAT']),
    'time of the injection without a date': dict(RadiopharmaceuticalStartDateTime=None),
    'over midnight, without a date': MIDNIGHT | dict(RadiopharmaceuticalStartTime='234000',
                                                     RadiopharmaceuticalStartDateTime=None),
    'over midnight': MIDNIGHT | dict(RadiopharmaceuticalStartTime='234000',
                                     RadiopharmaceuticalStartDateTime='20240102234000'),
    'a date that was changed': dict(RadiopharmaceuticalStartDateTime='20190102100320'),
    'dose in MBq': dict(RadionuclideTotalDose='348.2'),
    'SUV already': dict(Units='GML'),
}

# what mirp, pycerr, calculate-suv and platipy multiply the values with
PUBLISHED = {
    'Siemens': (0.0002998341727, 0.0002998341727, 0.0002998341727, 0.0002998341727),
    'Siemens, written again, its own start': (0.0002998341727, 0.0002998341727, 0.0002998341727, 0.00163813703),
    'Siemens, written again, second bed': (0.0002998341859, 0.0002998341859, 0.0003075038873, 0.00163813703),
    'GE': (0.0002998341727, 0.0002998341727, 0.0002998341727, 0.0002998341727),
    'GE, written again, its own start': (0.0002998341727, 0.0002998341727, 0.0002998341727, 0.00163813703),
    'GE, written again': (0.0002998341727, 0.0002998341727, 0.0002998341727, 0.00163813703),
    'GE, written again, second bed': (0.0002998341727, 0.0002998341727, 0.0003075038873, 0.00163813703),
    'Philips Bq/mL': (0.0002998341727, 0.0002998341727, 0.0002998341727, 0.0002998341727),
    'Philips counts, SUV factor': (0.000618, 0.000618, 0.000618, 0.000618),
    'Philips counts, activity factor': (0.0005193127871, 0.0005193127871, 0.0005193127871, None),
    'corrected to the injection': (0.0002082136703, 0.000208213677, 0.0002998341727, None),
    'not corrected for decay': (0.0003036367435, 0.0003036367435, None, None),
    'time of the injection without a date': (0.0002998341727, 0.0002998341727, 0.0002998341727, 0.0002998341727),
    'over midnight, without a date': (0.0003239478976, 0.0003239478976, None, 0.0003239478976),
    'over midnight': (0.0003239478976, 0.0003239478976, 0.0003239478976, 0.0003239478976),
    'a date that was changed': (0.0002998341727, 0.0002998341727, None, 0.0002998341727),
    'dose in MBq': (0.0002998341727, 0.0002998341727, 299.8341727, 299.8341727),
    'SUV already': (1.0, 1.0, 1.0, None),
}


def header(name:str) -> Dataset:
    "One of HEADERS."
    ds, item, tags = Dataset(), Dataset(), BASE | DOSE | HEADERS[name]
    for keyword, value in tags.items():
        if isinstance(keyword, tuple):
            creator, group, element = keyword
            ds.private_block(group, creator, create=True).add_new(element, 'DT' if group < 0x7000 else 'DS', value)
        elif value is not None: setattr(item if keyword in DOSE else ds, keyword, value)
    ds.RadiopharmaceuticalInformationSequence = [item]
    ds.filename = f'{name}.dcm'
    return ds


def mirp_factor(ds:Dataset) -> float:
    from mirp._data_import.dicom_file_pet import ImageDicomFilePT
    file = ImageDicomFilePT.__new__(ImageDicomFilePT)
    file.image_metadata, file.load_metadata, file.describe_self = ds, lambda: None, str
    return float(file._to_gml_conversion_factor())


def cerr_factor(ds:Dataset) -> float:
    import cerr.plan_container as pc
    import numpy as np
    from medfusion_nb.volume import write_original
    import SimpleITK as sitk
    with tempfile.TemporaryDirectory() as folder:
        ramp = sitk.GetImageFromArray(np.arange(1, 4*5*6 + 1, dtype=np.float32).reshape(4, 5, 6))
        for path in write_original(ramp, Path(folder), 'PT', RescaleSlope='1'):
            old = pydicom.dcmread(path)
            for e in ds:
                if e.tag.group != 8 or e.keyword not in ('SOPInstanceUID', 'SOPClassUID'): old[e.tag] = e
            old.save_as(path)
        scan = pc.loadDcmDir(folder).scan[0]
        if not scan.isSUV('BW'): raise ValueError('not converted')
        return float(np.sort(scan.scanArray.ravel())[-1]/120)


def platipy_factor(ds:Dataset) -> float:
    from platipy.dicom.io.crawl import get_suv_bw_scale_factor
    return float(get_suv_bw_scale_factor(ds))


NODE = """
const suv = require(process.argv[1]);
const out = JSON.parse(process.argv[2]).map(i => {
  try { return suv.calculateSUVScalingFactors([i])[0].suvbw } catch (e) { return null }
});
console.log(JSON.stringify(out.map(x => x === undefined ? null : x)));
"""


def instance(ds:Dataset) -> dict:
    "A header as calculate-suv takes it."
    item, found = ds.RadiopharmaceuticalInformationSequence[0], {}
    for d, keys in ((ds, BASE), (item, DOSE)):
        for k in keys:
            if k not in d: continue
            v = d[k].value
            number = d[k].VR in ('DS', 'IS')
            found[k] = float(v) if number else list(v) if k == 'CorrectedImage' else str(v)
    for creator, group, element, names in (
            ('GEMS_PETD_01', 0x09, 0x0d, ['GEPrivatePostInjectionDateTime']),
            ('Philips PET Private Group', 0x7053, 0x00, ['PhilipsPETPrivateGroup', 'SUVScaleFactor']),
            ('Philips PET Private Group', 0x7053, 0x09, ['PhilipsPETPrivateGroup', 'ActivityConcentrationScaleFactor'])):
        try: value = ds.private_block(group, creator)[element].value
        except KeyError: continue
        if len(names) == 1: found[names[0]] = str(value)
        else: found[names[0]] = {names[1]: float(value)}
    return found


def calculate_suv(package:str) -> list: # the folder of the npm package
    given = json.dumps([instance(header(name)) for name in HEADERS])
    done = subprocess.run(['node', '-e', NODE, package, given], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    others = calculate_suv(str(Path(sys.argv[1]).resolve())) if len(sys.argv) > 1 else [None]*len(HEADERS)
    for name, other in zip(HEADERS, others):
        row = []
        for factor in (mirp_factor, cerr_factor, platipy_factor):
            try: row.append(float(f'{factor(header(name)):.10g}'))
            except Exception as e:
                print(name, factor.__name__, repr(e)[:150], file=sys.stderr)
                row.append(None)
        print(f'    {name!r}: {(row[0], row[1], other and float(f"{other:.10g}"), row[2])},')
