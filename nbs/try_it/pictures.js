// Two pictures of one size: read, fused, drawn on canvases, saved.
import { Refused } from './files.js'
import { MOST_PIXELS, TOO_MANY, decodePNG, encodePNG } from './png.js'
import { fullScale, grey, weights, withoutAlpha } from './numbers.js'

// {name, width, height, values}: (H,W) float32 in [0,1]
async function readPicture({name, bytes, kind}, tell) {
    const isJPEG = kind === 'jpeg'
    const picture = isJPEG ? await decodeJPEG(name, bytes) : await decodePNG(name, bytes)
    const {channels, data} = withoutAlpha(name, picture), say = what => tell(`${name}: ${what}`)
    const values = grey({channels, data: fullScale(data, say)}, isJPEG, say)
    return {name, width: picture.width, height: picture.height, values}
}

// By the browser, upright, its colours as they are stored.
async function decodeJPEG(name, bytes) {
    const {width: w, height: h, components} = jpegFrame(bytes) ?? {}
    if (!(w*h > 0) || lastMarker(bytes, 0xd9) < lastMarker(bytes, 0xda)) // of the end, of the pixels
        throw new Refused(`${name} is truncated or damaged: copy it again`)
    if (w*h > MOST_PIXELS)
        throw new Refused(`${name} has ${h} x ${w} pixels, ${TOO_MANY}`)
    if (components > 3) throw new Refused(`${name} is stored as CMYK: save it in grey or RGB`)
    const unread = () => { throw new Refused(`${name} is damaged, or no usual JPEG: save it as PNG`) }
    const blob = new Blob([bytes], {type: 'image/jpeg'})
    const image = await createImageBitmap(blob, {colorSpaceConversion: 'none'}).catch(unread)
    const {width, height} = image, context = new OffscreenCanvas(width, height).getContext('2d')
    context.drawImage(image, 0, 0)
    return {width, height, channels: 4, data: context.getImageData(0, 0, width, height).data}
}

// Size and number of components, from the segment that begins the frame.
function jpegFrame(bytes) {
    for (let at = 2; at + 9 < bytes.length; at += 2 + (bytes[at + 2] << 8 | bytes[at + 3])) {
        const marker = bytes[at + 1], [a, b, c, d, components] = bytes.subarray(at + 5, at + 10)
        const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)
        if (isFrame) return {height: a << 8 | b, width: c << 8 | d, components}
    }
}

function lastMarker(bytes, marker) { // -1: there is none
    let at = bytes.length - 2
    while (at >= 0 && !(bytes[at] === 0xff && bytes[at + 1] === marker)) at--
    return at
}

export class Pictures {
    static async open(ct, mri) {
        const notes = [], read = file => readPicture(file, note => notes.push(note))
        const a = await read(ct), b = await read(mri)
        const [one, other] = [a, b].map(({name, height, width}) => `${name} has ${height} x ${width} pixels`)
        if (a.width !== b.width || a.height !== b.height)
            throw new Refused(`${one}, ${other}: the two must be aligned, resample one onto the other first`)
        return Object.assign(new Pictures(), {ct: a, mri: b, notes})
    }

    async fuse(engine) { // true when it is done
        const {width, height} = this.ct
        this.fused = await engine.fuse(this.ct.values, this.mri.values, height, width)
        return true
    }

    draw([ct, fused, mri], blend) { // canvases; blend: see weights
        const a = this.ct.values, c = this.mri.values, b = this.fused ?? c, [u, v, w] = weights(blend)
        draw(ct, this.ct, i => a[i])
        draw(fused, this.ct, i => u*a[i] + v*b[i] + w*c[i])
        draw(mri, this.ct, i => c[i])
    }

    async save() {
        const bytes = Uint8Array.from(this.fused, x => Math.round(255*x))
        return new File([await encodePNG(bytes, this.ct.width, this.ct.height)], 'fused.png')
    }

    close() {}
}

function draw(canvas, {width, height}, value) { // value(i): in [0,1]
    Object.assign(canvas, {width, height})
    const image = new ImageData(width, height)
    for (let i = 0; i < width*height; i++) {
        const level = Math.round(255*value(i))
        image.data.set([level, level, level, 255], 4*i)
    }
    canvas.getContext('2d').putImageData(image, 0, 0)
}
