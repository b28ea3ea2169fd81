// Stored numbers become grey levels in [0,1], as data.py and volume.py of the package do it.
import { Refused, percent } from './files.js'

export const WINDOWS = { // centre and width in HU
    brain: [40, 80], subdural: [75, 215], stroke: [40, 40], 'soft tissue': [40, 400], bone: [480, 2500],
}
export const TRAINED = WINDOWS.brain // of the images that the network has seen

export const clip = x => Math.min(Math.max(x, 0), 1)

// Of CT, fused image and MRI in a blend: 0 is the CT, 0.5 the fused image, 1 the MRI.
export function weights(blend) {
    const t = 2*blend - 1
    return [Math.max(-t, 0), 1 - Math.abs(t), Math.max(t, 0)]
}

// --- Pictures

// Alpha dropped; refused where that is not the same as the picture laid on black.
export function withoutAlpha(name, {channels, data}) {
    if (channels % 2) return {channels, data}
    const colors = channels - 1, n = data.length/channels, out = new data.constructor(n*colors)
    const white = data instanceof Uint16Array ? 65535 : 255
    let clear = 0
    for (let i = 0; i < n; i++) {
        const pixel = data.subarray(i*channels, i*channels + colors)
        if (data[i*channels + colors] < white && pixel.some(x => x > 0)) clear++
        out.set(pixel, i*colors)
    }
    if (clear)
        throw new Refused(`${name}: ${percent(clear/n)} of its pixels are transparent, and what lies under `
            + 'them is not black: lay it on black in an image editor, and save it without transparency')
    return {channels: colors, data: out}
}

const largest = data => data.reduce((a, b) => Math.max(a, b))
const smallest = data => data.reduce((a, b) => Math.min(a, b))

// White is 255 or 65535; of 16 bits that are not all used the next power of two. Tells what to know of it.
export function fullScale(data, tell) {
    const most = largest(data), deep = data instanceof Uint16Array, bits = Math.max(8, 32 - Math.clz32(most))
    const white = !deep ? 255 : most > 0 && most < 2**14 ? 2**bits - 1 : 65535
    if (most < white/8) tell(`nearly black, its largest number is ${most}, and white is ${white}`)
    else if (deep && white < 65535)
        tell(`${bits}-bit numbers in 16-bit ones (largest number ${most}): white is taken to be ${white}`)
    return white === 65535 || !deep ? data : data.map(x => Math.round(x/white*65535))
}

// Colours by the weights of OpenCV, in integers; (H,W) float32 in [0,1]. Tells where colour is dropped.
export function grey({channels, data}, isJPEG, tell) {
    const white = data instanceof Uint16Array ? 65535 : 255
    if (channels === 1) return Float32Array.from(data, x => x/white)
    const n = data.length/3, out = new Float32Array(n), pale = white/(isJPEG ? 8 : 32)
    let colored = 0
    for (let i = 0; i < n; i++) {
        const r = data[3*i], g = data[3*i + 1], b = data[3*i + 2]
        if (Math.max(r, g, b) - Math.min(r, g, b) > pale) colored++
        out[i] = Math.floor((9798*r + 19235*g + 3735*b + 16384)/32768)/white
    }
    if (colored >= 8 && (!isJPEG || colored > .001*n))
        tell(`in colour (${percent(colored/n)} of its pixels), and the colour is dropped`)
    return out
}

// --- Volumes

export const throughWindow = (hu, [center, width]) => clip((hu - (center - width/2))/width)

function quantile(sorted, share) { // linear between two values
    const last = sorted.length - 1, at = share*last, i = Math.floor(at)
    return sorted[i] + (at - i)*(sorted[Math.min(i + 1, last)] - sorted[i])
}

const everyNth = (a, n) => Float32Array.from({length: Math.ceil(a.length/n)}, (_, i) => a[i*n])

// The grey levels of an MRI that become black and white.
export function mriRange(name, values) {
    const sample = everyNth(values, Math.max(Math.floor(values.length/2e6), 1)).sort()
    const low = quantile(sample, .001), high = quantile(sample, .999)
    if (!(high > low)) throw new Refused(`${name}: its voxels are all ${low}, nothing to see: choose the MRI`)
    const cut = otsu(sample, low, high), below = sample.findIndex(x => x >= cut)
    const air = sample.subarray(0, below), head = sample.subarray(below)
    const middle = quantile(air, .5), dark = quantile(air, .05)
    return [Math.min(middle + 2*(middle - dark), .5*(cut + low)), quantile(head, .995)]
}

// The threshold with the largest variance between the classes below and above (Otsu 1979).
function otsu(sample, low, high) {
    const bins = 256, step = (high - low)/bins, edge = i => low + i*step, counts = new Float64Array(bins)
    for (const x of sample) {
        if (x < low || x > high) continue
        let i = Math.min(Math.floor((x - low)/step), bins - 1)
        if (x < edge(i)) i--
        else if (i < bins - 1 && x >= edge(i + 1)) i++
        counts[i]++
    }
    const middle = i => edge(i + .5), all = counts.reduce((a, b) => a + b)
    const sum = counts.reduce((s, count, i) => s + count*middle(i), 0)
    let best = -1, at = 0, n = 0, total = 0
    counts.forEach((count, i) => {
        n += count
        total += count*middle(i)
        const between = (sum*n - total*all)**2/Math.max(n*(all - n), 1)
        if (between > best) [best, at] = [between, i]
    })
    return middle(at)
}

// Do values, less an offset, peak near -1000, as those of air do in Hounsfield units?
export function hasAir(values, offset=0) {
    let air = 0, lung = 0
    for (const x of values) {
        if (x - offset >= -1100 && x - offset <= -900) air++
        if (x - offset >= -800 && x - offset <= -400) lung++
    }
    return air > Math.max(.01*values.length, lung)
}

// Why the values of a CT are not Hounsfield units, '' where they can be. The package looks closer.
export function whyNotHU(values) {
    const low = smallest(values), most = largest(values), high = quantile(everyNth(values, 7).sort(), .999)
    if (most === low) return 'all voxels are the same'
    if (low >= -1 && most <= 1) return `it has been rescaled to [${low < 0 ? -1 : 0},1]`
    if (low >= -30 && low < 0 && most < 20) return 'it was normalised to a mean of 0'
    if (low === 0 && [127, 128, 200, 254, 255].includes(most)) return 'it has been windowed to 8 bits'
    if (hasAir(values)) return ''
    if (hasAir(values, 1000) || hasAir(values, 1024)) return 'the intercept was lost, or it is an MRI'
    return high > 1000 ? 'the range was rescaled, or it is an MRI' : 'there is no air near -1000'
}
