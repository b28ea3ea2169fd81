"""Geometry, for any volume: the same values at the same physical points, whatever the file and its axes.

The content is linear in the physical point: linear interpolation of that is exact on every grid, turned,
sheared or coarse. So the tolerances are those of stored whole numbers: a tenth of a voxel of error shows.
"""
import tempfile
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, Phase, given, seed, settings
from scipy.spatial.transform import Rotation

from medfusion_nb.register import rigid
from medfusion_nb.study import Alignment, fuse_study
from medfusion_nb.volume import mri_range, read_volume, write_original

SEAM = 8            # mm within a face: nearer, one volume fades into the other
WINDOW = 0., 1000.  # HU
SLOPES = dict(CT=np.array([3., -2, 2.5]), MR=np.array([9., 12, -7])) # of the content, a mm; no symmetry
MIDDLE = dict(CT=0., MR=2500.)


class Grid(NamedTuple):
    "Where the voxels of a volume lie, LPS, mm."
    size:tuple[int, ...]
    spacing:np.ndarray
    center:np.ndarray
    axes:np.ndarray    # (3,3) columns
    tilt:float         # mm along the second axis from slice to slice

    def places(self):
        "(x,y,z,3) points of the voxels."
        index = np.stack(np.indices(self.size), -1) - (np.array(self.size) - 1)/2
        local = index*self.spacing
        local[..., 1] += self.tilt*index[..., 2]
        return self.center + local @ self.axes.T

    def depth(self, points):
        "mm from points to the nearest face, negative outside; the first axis is that of the points."
        local = (points - self.center) @ self.axes
        half = np.array(self.size)*self.spacing/2
        return (half - np.abs(local)).min(-1)


class Volume(NamedTuple):
    "A volume to write and to read."
    grid:Grid
    kind:str    # CT or MR
    ending:str  # of the file; dicom: a folder
    names:int   # seed of the names of the slices


def content(kind, points, center):
    "Values at physical points."
    return MIDDLE[kind] + (points - center) @ SLOPES[kind]


def turned(order, flips, angles):
    "Axes: those of the patient permuted, flipped, then turned by degrees."
    axes = np.eye(3)[:, list(order)]*[-1 if f else 1 for f in flips]
    return Rotation.from_euler('xyz', angles, degrees=True).as_matrix() @ axes


@st.composite
def volumes(draw, kind, around=None):
    "A volume of any orientation, spacing, format and order of slices, about a point."
    axes = turned(draw(st.permutations(range(3))), draw(st.tuples(*[st.booleans()]*3)),
                  draw(st.tuples(*[st.floats(-25, 25)]*3)))
    ending = draw(st.sampled_from(['dicom', 'nii', 'nii.gz', 'nrrd', 'nhdr', 'mha', 'mhd']))
    if ending == 'dicom' and np.linalg.det(axes) < 0: axes[:, 2] *= -1 # its third axis is the cross product
    tilt = draw(st.sampled_from([0., 0., 1.25])) if ending == 'dicom' else 0.
    center = np.array(draw(st.tuples(*[st.floats(-150, 150)]*3))) if around is None else around
    return Volume(Grid(
        size=draw(st.tuples(*[st.integers(14, 18)]*3)),
        spacing=np.array(draw(st.tuples(*[st.floats(3, 5)]*3))),
        center=center,
        axes=axes,
        tilt=tilt), kind, ending, draw(st.integers(0, 999)))


def as_image(values, grid):
    "A SimpleITK image of (x,y,z) values."
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.axes.ravel().tolist())
    image.SetOrigin(grid.places()[0, 0, 0].tolist())
    return image


def write(v, folder, about):
    "Write a volume with the content about a point; gives what to read."
    values = np.rint(content(v.kind, v.grid.places(), about)).astype(np.int16)
    image = as_image(values, v.grid)
    if v.ending == 'dicom': return write_slices(v, image, folder/v.kind)
    path = folder/f'{v.kind}.{v.ending}'
    if not v.ending.startswith('nii'):
        sitk.WriteImage(image, str(path))
        return path
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = v.grid.axes*v.grid.spacing, image.GetOrigin()
    affine = np.diag([-1., -1, 1, 1]) @ affine # LPS to RAS
    nifti = nibabel.Nifti1Image(values, affine)
    nifti.header.set_xyzt_units('mm')
    for form in (nifti.set_sform, nifti.set_qform): form(affine, 1)
    nibabel.save(nifti, path)
    return path


def write_slices(v, image, folder):
    "A DICOM series under shuffled names, whose slices lie where the grid says, also a tilted one."
    files = write_original(image, folder, v.kind)
    names = np.random.default_rng(v.names).permutation(len(files))
    for k, (file, name) in enumerate(zip(files, names)):
        ds = pydicom.dcmread(file)
        ds.ImagePositionPatient = [f'{x:.9g}' for x in v.grid.places()[0, 0, k]]
        ds.save_as(folder/f'IM{name}')
        file.unlink()
    return folder


def read(v, folder, about):
    "Write and read; the numbers of these volumes need not look like those of a head."
    return read_volume(write(v, folder, about), modality=v.kind, hu=False)


def places_of(image):
    "(x,y,z,3) points of the voxels of an image, as SimpleITK has it."
    index = np.stack(np.indices(image.GetSize()), -1)
    axes = np.reshape(image.GetDirection(), (3, 3))*image.GetSpacing()
    return index @ axes.T + image.GetOrigin()


def examine(config, test, *strategies):
    "Try a property on a few examples, always the same; on more with --hostile, on others with --seed."
    number, start = config.getoption('--hostile')//30, config.getoption('--seed')
    slow = dict(deadline=None, suppress_health_check=[*HealthCheck], database=None, print_blob=False,
                phases=[Phase.generate]) # to simplify an example that fails would take minutes
    test = settings(max_examples=max(number, 1), derandomize=not start, **slow)(given(*strategies)(test))
    if start: test = seed(start)(test)
    test()


@pytest.mark.parametrize('kind', SLOPES)
def test_read(kind, request):
    "Each voxel that is read holds the value of the point where it is said to lie."
    def property(v):
        with tempfile.TemporaryDirectory() as folder: scan = read(v, Path(folder), v.grid.center)
        points, found = places_of(scan.image), sitk.GetArrayFromImage(scan.image).T
        inside = v.grid.depth(points) > v.grid.spacing.max()/2 + 1 # a tilted series has air at its sides
        core = np.abs((points - v.grid.center) @ v.grid.axes[:, 1]) < 15
        if v.grid.tilt: inside &= core
        else: assert sorted(found.shape) == sorted(v.grid.size) and not scan.notes, scan.notes
        assert inside.sum() > 100
        off = np.abs(found - content(kind, points, v.grid.center))[inside].max()
        assert off < .51, f'{off:.3g} off at some voxel of {v.ending}' # stored as whole numbers
    examine(request.config, property, volumes(kind))


class Brighter:
    "The simplest engine: the brighter of both."
    window, batch_size = WINDOW, 8

    def __call__(self, ct, mri): return np.maximum(ct, mri)


angles = st.tuples(*[st.floats(-10, 10)]*3)


@st.composite
def pairs(draw):
    "CT and MRI on grids and in files of their own, and how the head moved between them."
    ct, way = draw(volumes('CT')), np.array(draw(st.tuples(*[st.floats(-20, 20)]*3)))
    motion = rigid(draw(angles), way.tolist(), ct.grid.center.tolist())
    there = np.array(motion.TransformPoint(ct.grid.center.tolist()))
    mri = draw(volumes('MR', there + draw(st.tuples(*[st.floats(-3, 3)]*3))))
    return ct, mri, motion, draw(st.sampled_from(['ct', 'mri']))


def test_fused(request):
    "The fused value of each voxel well inside both volumes is the brighter of both at that point."
    def property(pair):
        ct, mri, motion, grid = pair
        there = np.array(motion.TransformPoint(ct.grid.center.tolist()))
        with tempfile.TemporaryDirectory() as folder:
            scans = read(ct, Path(folder), ct.grid.center), read(mri, Path(folder), there)
        study = fuse_study(Alignment(*scans, motion, 'file', None, ''), Brighter(), WINDOW, grid)
        points = places_of(study.fused).reshape(-1, 3)
        found = sitk.GetArrayFromImage(study.fused).T.ravel()
        def moved(transform): return np.array([transform.TransformPoint(p.tolist()) for p in points])
        at_ct, at_mri = (points, moved(motion)) if grid == 'ct' else (moved(motion.GetInverse()), points)
        black, white = mri_range(scans[1].image)
        bone = (content('CT', at_ct, ct.grid.center) - WINDOW[0])/WINDOW[1] + .5
        tissue = (content('MR', at_mri, there) - black)/(white - black)
        margin = SEAM + max(*ct.grid.spacing, *mri.grid.spacing)
        sure = np.minimum(ct.grid.depth(at_ct), mri.grid.depth(at_mri)) > margin
        for v, p in ((ct, at_ct), (mri, at_mri)): # the straight core of a tilted series
            if v.grid.tilt: sure &= np.abs((p - v.grid.center) @ v.grid.axes[:, 1]) < 12
        sure &= np.abs(tissue - .5) < .3 # an MRI is clipped before it is interpolated
        assert sure.any(), 'no voxel to look at'
        off = np.abs(found - np.maximum(bone, tissue).clip(0, 1))[sure].max()
        what = f'{ct.ending} and {mri.ending} on the grid of {grid}'
        assert off < 4e-3, f'{off:.3g} off: {what}' # half a HU, and the rounding of the MRI
    examine(request.config, property, pairs())
