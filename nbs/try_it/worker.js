// Runs the compact network beside the page: answers {id, ct, mri, height, width} with {id, fused}.
import * as ort from './ort.js'

const MULTIPLE = 8 // the network halves its images three times
ort.env.wasm.numThreads = 1 // more need headers that GitHub Pages does not send

const address = new URL('model.onnx', import.meta.url).href
const session = ort.InferenceSession.create(address, {executionProviders: ['wasm']})
session.then(() => postMessage({ready: true}), e => postMessage({error: String(e)}))

onmessage = async ({data: {id, ct, mri, height, width}}) => {
    try {
        const [h, w] = [height, width].map(n => Math.ceil(n/MULTIPLE)*MULTIPLE)
        const inputs = {ct: tensor(ct, height, width, h, w), mri: tensor(mri, height, width, h, w)}
        const {fused} = await (await session).run(inputs, ['fused'])
        const out = cropped(fused.data, height, width, w)
        postMessage({id, fused: out}, [out.buffer])
    } catch (e) { postMessage({id, error: String(e)}) }
}

// (height,width) -> (1,1,h,w); the right and the lower border are repeated.
function tensor(img, height, width, h, w) {
    const out = new Float32Array(h*w)
    for (let y = 0; y < h; y++) {
        const start = Math.min(y, height - 1)*width
        out.set(img.subarray(start, start + width), y*w)
        out.fill(img[start + width - 1], y*w + width, (y + 1)*w)
    }
    return new ort.Tensor('float32', out, [1, 1, h, w])
}

function cropped(img, height, width, w) {
    const out = new Float32Array(height*width)
    for (let y = 0; y < height; y++) out.set(img.subarray(y*w, y*w + width), y*width)
    return out
}
