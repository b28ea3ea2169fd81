// PNG files to the last bit: a canvas keeps 8 of 16 bits, and shows colours as a profile wants them.
import { Refused, deflated, inflated } from './files.js'

export const MOST_PIXELS = 2048*2048, TOO_MANY = 'too many here: crop it, or use medfusion_fuse'
const CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4} // type of colour -> numbers of a pixel; 3 is a palette
const WHOLE = [[0, 0, 1, 1]]                    // first column and row, and their steps
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2],
               [0, 1, 1, 2]]

const CRC = Uint32Array.from({length: 256}, (_, n) => {
    for (let i = 0; i < 8; i++) n = n & 1 ? n >>> 1 ^ 0xedb88320 : n >>> 1
    return n
})
const crc32 = bytes => ~bytes.reduce((crc, byte) => CRC[(crc ^ byte) & 255] ^ crc >>> 8, ~0) >>> 0
const viewOf = bytes => new DataView(bytes.buffer, bytes.byteOffset, bytes.length)

// {width, height, channels, data}: numbers of 8 or 16 bits; of 2 or 4 channels the last is alpha.
export async function decodePNG(name, bytes) {
    const damaged = () => { throw new Refused(`${name} is truncated or damaged: copy it again`) }
    const {IHDR, PLTE, tRNS, IDAT, acTL, eXIf} = chunks(bytes) ?? damaged()
    const width = viewOf(IHDR[0]).getUint32(0), height = viewOf(IHDR[0]).getUint32(4)
    const [depth, type, , , interlaced] = IHDR[0].subarray(8)
    if (width*height > MOST_PIXELS)
        throw new Refused(`${name} has ${height} x ${width} pixels, ${TOO_MANY}`)
    if (acTL && viewOf(acTL[0]).getUint32(0) > 1)
        throw new Refused(`${name} is an animation: save one picture of it`)
    if (eXIf && isTurned(viewOf(eXIf[0])))
        throw new Refused(`${name} is turned by its EXIF data: save it upright`)
    const raw = await inflated(new Blob(IDAT), 'deflate').catch(damaged), passes = interlaced ? ADAM7 : WHOLE
    const stored = samples(raw, width, height, CHANNELS[type], depth, passes) ?? damaged()
    return {width, height, ...expanded(stored, type, depth, PLTE?.[0], tRNS?.[0])}
}

// Name -> contents, in order; undefined where a checksum is wrong or the end is missing.
function chunks(bytes) {
    const found = {}, view = viewOf(bytes)
    for (let at = 8, end; at + 12 <= bytes.length; at = end + 4) {
        end = at + 8 + view.getUint32(at)
        if (end + 4 > bytes.length || crc32(bytes.subarray(at + 4, end)) !== view.getUint32(end)) return
        const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8))
        if (name === 'IEND') return found.IHDR && found.IDAT && found
        found[name] = [...found[name] ?? [], bytes.subarray(at + 8, end)]
    }
}

// Does EXIF data say another orientation than upright?
function isTurned(exif) {
    const little = exif.getUint8(0) === 0x49
    try {
        const first = exif.getUint32(4, little) + 2, n = exif.getUint16(first - 2, little)
        for (let at = first; at < first + 12*n; at += 12)
            if (exif.getUint16(at, little) === 0x112) return exif.getUint16(at + 8, little) > 1
    } catch (e) { if (!(e instanceof RangeError)) throw e } // damaged
    return false
}

// The numbers as they are stored; undefined where some are missing.
function samples(raw, width, height, channels, depth, passes) {
    const out = new (depth === 16 ? Uint16Array : Uint8Array)(width*height*channels)
    const bits = channels*depth
    let at = 0
    for (const [x0, y0, dx, dy] of passes) {
        const w = Math.ceil((width - x0)/dx), h = Math.ceil((height - y0)/dy), n = Math.ceil(w*bits/8)
        if (w < 1 || h < 1) continue
        let above = new Uint8Array(n)
        for (let y = 0; y < h; y++, at += n + 1) {
            const filter = FILTERS[raw[at]], row = raw.subarray(at + 1, at + 1 + n)
            if (!filter || row.length < n) return
            unfilter(filter, row, above, Math.max(1, bits >> 3))
            above = row
            for (let x = 0; x < w; x++) {
                const to = ((y0 + y*dy)*width + x0 + x*dx)*channels
                for (let c = 0; c < channels; c++) out[to + c] = sample(row, x*channels + c, depth)
            }
        }
    }
    return out
}

function sample(row, i, depth) {
    if (depth === 16) return row[2*i] << 8 | row[2*i + 1]
    return depth === 8 ? row[i] : row[i*depth >> 3] >> 8 - depth - (i*depth & 7) & 2**depth - 1
}

const FILTERS = [() => 0, a => a, (a, b) => b, (a, b) => a + b >> 1, paeth]

function unfilter(filter, row, above, back) { // back: bytes to the pixel on the left
    for (let i = 0; i < row.length; i++)
        row[i] += i < back ? filter(0, above[i], 0) : filter(row[i - back], above[i], above[i - back])
}

function paeth(a, b, c) { // left, above, above left
    const pa = Math.abs(b - c), pb = Math.abs(a - c), pc = Math.abs(a + b - 2*c)
    return pa <= pb && pa <= pc ? a : pb <= pc ? b : c
}

// 1, 2 and 4 bits are stretched to 8; a palette becomes colours, a transparent colour alpha.
function expanded(stored, type, depth, palette, clear) {
    const channels = CHANNELS[type], scale = type !== 3 && depth < 8 ? 255/(2**depth - 1) : 1
    const colors = type === 3 ? 3 : channels, all = colors + (clear ? 1 : 0)
    if (type !== 3 && !clear && scale === 1) return {channels, data: stored}
    const data = new stored.constructor(stored.length/channels*all), white = depth === 16 ? 65535 : 255
    const key = Array.from({length: colors}, (_, c) => clear && clear[2*c] << 8 | clear?.[2*c + 1])
    for (let i = 0, to = 0; i < stored.length; i += channels, to += all) {
        const pixel = stored.subarray(i, i + channels)
        for (let c = 0; c < colors; c++) data[to + c] = type === 3 ? palette[3*pixel[0] + c] : pixel[c]*scale
        if (clear && type === 3) data[to + 3] = clear[pixel[0]] ?? 255
        else if (clear) data[to + colors] = pixel.every((x, c) => x === key[c]) ? 0 : white
    }
    return {channels: all, data}
}

// A grey picture, (H,W) of 8 bits, as a file.
export async function encodePNG(grey, width, height) {
    const rows = new Uint8Array(height*(width + 1)) // each begins with its filter, 0: none
    for (let y = 0; y < height; y++) rows.set(grey.subarray(y*width, (y + 1)*width), y*(width + 1) + 1)
    const header = Uint8Array.of(...bigEndian(width), ...bigEndian(height), 8, 0, 0, 0, 0)
    const parts = [chunk('IHDR', header), chunk('IDAT', await deflated(rows, 'deflate')), chunk('IEND', [])]
    return new Blob([Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10), ...parts], {type: 'image/png'})
}

const bigEndian = n => [n >>> 24, n >>> 16 & 255, n >>> 8 & 255, n & 255]

function chunk(name, contents) {
    const out = new Uint8Array(contents.length + 12)
    out.set(bigEndian(contents.length))
    out.set([...name].map(c => c.charCodeAt()), 4)
    out.set(contents, 8)
    out.set(bigEndian(crc32(out.subarray(4, -4))), contents.length + 8)
    return out
}
