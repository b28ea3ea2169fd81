// Volumes in NIfTI-1: read, laid out along left, back, head, cut into slices, written.
import { Refused, deflated } from './files.js'

const MOST_VOXELS = 512*512*160 // NiiVue needs about 30 bytes of graphics memory for each
const TYPES = { // by the code of the header
    2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 256: Int8Array,
    512: Uint16Array, 768: Uint32Array, 1024: BigInt64Array, 1280: BigUint64Array,
}
const RESEARCH = 'RESEARCH ONLY - NOT FOR CLINICAL USE'
const AXES = [0, 1, 2]
const MM = {1: 1000, 3: .001} // units of length that are no mm

const length = v => Math.hypot(...v)
const scaled = (v, s) => v.map(x => x*s)
const plus = (a, b) => a.map((x, i) => x + b[i])
const dot = (a, b) => a.reduce((sum, x, i) => sum + x*b[i], 0)
const toLPS = v => [-v[0], -v[1], v[2]] // from RAS, and back

// {name, values, grid}. Values are float32, x fastest. The grid has a size in voxels, the steps along x, y, z
// and the origin in mm, LPS.
export function readNIfTI(name, bytes, tell) {
    const refuse = why => { throw new Refused(`${name}: ${why}`) }
    const header = readHeader(bytes, refuse), grid = header.grid
    const voxels = grid.size[0]*grid.size[1]*grid.size[2]
    if (voxels > MOST_VOXELS)
        refuse(`${grid.size.join(' x ')} voxels are too many here: crop it, or use medfusion_fuse`)
    checkGrid(grid, refuse)
    const values = decoded(bytes, header, voxels, refuse)
    const wrong = background(values)
    if (wrong === voxels) refuse('none of its values is a number: choose another file')
    if (wrong) tell(`${name}: ${wrong} voxels that are not numbers were set to the smallest value`)
    return {name, values, grid}
}

function readHeader(bytes, refuse) {
    if (bytes.length < 352) refuse('it is truncated: copy it again')
    const view = new DataView(bytes.buffer, bytes.byteOffset), little = view.getInt32(0, true) === 348
    const short = at => view.getInt16(at, little), float = at => view.getFloat32(at, little)
    const floats = (at, n) => Array.from({length: n}, (_, i) => float(at + 4*i))
    if (String.fromCharCode(...bytes.subarray(344, 347)) !== 'n+1')
        refuse('it is half of a pair, or Analyze: save it as .nii.gz')
    const dims = Array.from({length: 8}, (_, i) => short(40 + 2*i)), shape = dims.slice(1, dims[0] + 1)
    if (shape.length < 3 || shape.slice(3).some(n => n > 1))
        refuse(`it has ${shape.length} dimensions, ${shape.join(' x ')}, expected 3: save one volume of it`)
    const Type = TYPES[short(70)]
    if (!Type || ![0, 8*Type.BYTES_PER_ELEMENT].includes(short(72)))
        refuse('it holds colours, complex or unknown numbers: save it as plain numbers')
    const slope = float(112), inter = float(116)
    if (!Number.isFinite(slope) || !Number.isFinite(inter))
        refuse(`its scale ${slope} and ${inter} cannot be: correct scl_slope and scl_inter`)
    if (!(short(252) > 0 || short(254) > 0))
        refuse('neither sform nor qform is set, so its orientation is unknown: set it')
    const affine = short(254) > 0 ? sform(floats(280, 12)) : qform(floats(76, 4), floats(256, 6)) // RAS
    const mm = MM[bytes[123] & 7] ?? 1, [origin, ...steps] = affine.map(v => scaled(toLPS(v), mm))
    return {little, Type, scale: slope ? [slope, inter] : [1, 0], offset: float(108),
            grid: {size: shape.slice(0, 3), steps, origin}}
}

// Origin and steps along x, y, z, in RAS: from three rows, or from a quaternion.
const sform = rows => [3, 0, 1, 2].map(c => [rows[c], rows[4 + c], rows[8 + c]])

function qform([face, dx, dy, dz], [b, c, d, ...origin]) {
    const a = Math.sqrt(Math.max(1 - b*b - c*c - d*d, 0))
    return [origin, scaled([a*a + b*b - c*c - d*d, 2*(b*c + a*d), 2*(b*d - a*c)], dx),
            scaled([2*(b*c - a*d), a*a + c*c - b*b - d*d, 2*(c*d + a*b)], dy),
            scaled([2*(b*d + a*c), 2*(c*d - a*b), a*a + d*d - b*b - c*c], face < 0 ? -dz : dz)]
}

function checkGrid({size, steps, origin}, refuse) {
    const possible = steps.map(length).every(mm => mm > .001 && mm <= 100)
    if (size.some(n => n < 1) || !possible || !origin.every(Number.isFinite))
        refuse('its size, spacing or origin cannot be: correct its header')
    const [x, y, z] = steps.map(v => scaled(v, 1/length(v)))
    if (Math.max(...[dot(x, y), dot(x, z), dot(y, z)].map(Math.abs)) > 1e-3)
        refuse('its axes are not perpendicular (a sheared affine): resample it first')
}

function decoded(bytes, {little, Type, scale: [slope, inter], offset}, voxels, refuse) {
    const width = Type.BYTES_PER_ELEMENT, raw = bytes.slice(offset, offset + voxels*width)
    if (!(offset >= 352) || raw.length < voxels*width)
        refuse('it is truncated or damaged, its header claims more voxels than it has: copy it again')
    if (!little) for (let i = 0; i < raw.length; i += width) raw.subarray(i, i + width).reverse()
    const stored = new Type(raw.buffer), values = new Float32Array(voxels)
    for (let i = 0; i < voxels; i++) values[i] = slope*Number(stored[i]) + inter
    return values
}

// What is no number becomes the smallest one; how many there were.
function background(values) {
    let low = Infinity, wrong = 0
    for (const x of values) if (Number.isFinite(x)) low = Math.min(low, x); else wrong++
    if (wrong) values.forEach((x, i) => { if (!Number.isFinite(x)) values[i] = low })
    return wrong
}

// The same volume, its axes flipped and permuted to left, back, head.
export function canonical({name, values, grid}) {
    const strides = [1, grid.size[0], grid.size[0]*grid.size[1]]
    const from = nearestAxes(grid.steps), size = from.map(c => grid.size[c])
    let steps = from.map(c => grid.steps[c]), jumps = from.map(c => strides[c]), {origin} = grid, first = 0
    const sign = steps.map((v, r) => v[r] < 0 ? -1 : 1)
    for (const r of AXES.filter(i => sign[i] < 0)) { // begin at the other end
        origin = plus(origin, scaled(steps[r], size[r] - 1))
        first += jumps[r]*(size[r] - 1)
    }
    steps = steps.map((v, r) => scaled(v, sign[r]))
    jumps = jumps.map((n, r) => n*sign[r])
    const same = jumps.every((n, r) => n === strides[r])
    return {name, values: same ? values : gathered(values, size, jumps, first), grid: {size, steps, origin}}
}

// For left, back and head the axis of the volume that is nearest to it, the clearest first.
function nearestAxes(steps) {
    const along = (r, c) => Math.abs(steps[c][r])/length(steps[c]), from = []
    const pairs = AXES.flatMap(r => AXES.map(c => [r, c])).sort((a, b) => along(...b) - along(...a))
    for (const [r, c] of pairs) if (from[r] === undefined && !from.includes(c)) from[r] = c
    return from
}

function gathered(values, [nx, ny, nz], [dx, dy, dz], first) {
    const out = new Float32Array(nx*ny*nz)
    let to = 0
    for (let z = 0; z < nz; z++)
        for (let y = 0; y < ny; y++)
            for (let x = 0, at = first + z*dz + y*dy; x < nx; x++, at += dx) out[to++] = values[at]
    return out
}

// Have two grids the same voxels, to a tenth of one?
export function sameGrid(a, b) {
    if (!a.size.every((n, i) => n === b.size[i])) return false
    const ends = g => [g.origin, ...AXES.map(i => plus(g.origin, scaled(g.steps[i], g.size[i] - 1)))].flat()
    const others = ends(b), away = Math.max(...ends(a).map((x, i) => Math.abs(x - others[i])))
    return away < .1*Math.min(...a.steps.map(length))
}

export function inWords({size, steps, origin}) {
    const mm = steps.map(v => +length(v).toPrecision(4)).join(' x ')
    const at = origin.map(x => x.toFixed(1)).join(', ')
    return `${size.join(' x ')} voxels of ${mm} mm at (${at})`
}

// Between voxels and RAS mm; the steps are perpendicular.
export const toMM = ({steps, origin}, voxel) =>
    toLPS(AXES.reduce((p, i) => plus(p, scaled(steps[i], voxel[i])), origin))

export function toVoxel({size, steps, origin}, mm) {
    const from = plus(toLPS(mm), scaled(origin, -1))
    const index = steps.map(v => Math.round(dot(from, v)/dot(v, v)))
    return index.map((n, i) => Math.min(Math.max(n, 0), size[i] - 1))
}

// The axis across the slices: the one with the coarsest step, or else the nearest to head-foot.
export function sliceAxis({steps}) {
    const mm = steps.map(length), coarse = mm.indexOf(Math.max(...mm))
    if (mm[coarse] > 1.2*Math.max(...mm.filter((_, i) => i !== coarse))) return coarse
    const up = steps.map((v, i) => Math.abs(v[2])/mm[i])
    return up.indexOf(Math.max(...up))
}

// Where the slices across an axis lie, upright: value (y,x) of slice k is at first(k) + y*down + x*right.
export function slicing({size: [nx, ny, nz]}, axis) {
    const top = (nz - 1)*nx*ny // the head is up
    if (axis === 2) return {n: nz, height: ny, width: nx, first: k => k*nx*ny, down: nx, right: 1}
    if (axis === 1) return {n: ny, height: nz, width: nx, first: k => top + k*nx, down: -nx*ny, right: 1}
    return {n: nx, height: nz, width: ny, first: k => top + k, down: -nx*ny, right: nx}
}

// visit(i, at): the index in the slice, and in the volume
export function forSlice({height, width, first, down, right}, k, visit) {
    for (let y = 0, i = 0; y < height; y++)
        for (let x = 0, at = first(k) + y*down; x < width; x++, at += right) visit(i++, at)
}

// The bytes of a file: numbers of one of TYPES, and what one of them means.
export function niftiBytes(grid, stored, slope=1, white=0) {
    const bytes = new Uint8Array(352 + stored.byteLength), view = new DataView(bytes.buffer)
    const shorts = (at, ...numbers) => numbers.forEach((x, i) => view.setInt16(at + 2*i, x, true))
    const floats = (at, ...numbers) => numbers.forEach((x, i) => view.setFloat32(at + 4*i, x, true))
    const text = (at, words) => bytes.set([...words].map(c => c.charCodeAt()), at)
    const code = Object.keys(TYPES).find(k => stored instanceof TYPES[k])
    const columns = [...grid.steps, grid.origin].map(toLPS)
    view.setInt32(0, 348, true)
    shorts(40, 3, ...grid.size, 1, 1, 1, 1)
    shorts(70, code, 8*stored.BYTES_PER_ELEMENT)
    floats(76, 1, ...grid.steps.map(length))
    floats(108, 352, slope, 0)
    bytes[123] = 2 // mm
    floats(124, white, 0)
    text(148, RESEARCH)
    shorts(252, 0, 1) // only the sform is set
    AXES.forEach(r => floats(280 + 16*r, ...columns.map(v => v[r])))
    text(344, 'n+1')
    bytes.set(new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength), 352)
    return bytes
}

export const writeNIfTI = async (name, grid, stored, slope) =>
    new File([await deflated(niftiBytes(grid, stored, slope), 'gzip')], name)
