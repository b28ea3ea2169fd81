// The network, in a worker.
export class Engine {
    static load() { // fails where the browser cannot run it
        const worker = new Worker(new URL('worker.js', import.meta.url), {type: 'module'})
        return new Promise((resolve, reject) => {
            worker.onmessage = ({data: {ready, error}}) => {
                if (ready) resolve(new Engine(worker))
                else reject(new Error(error))
            }
            worker.onerror = e => reject(new Error(e.message ?? 'the worker did not start'))
        })
    }

    constructor(worker) {
        Object.assign(this, {worker, waiting: new Map(), sent: 0})
        worker.onmessage = ({data: {id, fused, error}}) => {
            const {resolve, reject} = this.waiting.get(id)
            this.waiting.delete(id)
            if (fused) resolve(fused)
            else reject(new Error(error))
        }
    }

    fuse(ct, mri, height, width) { // (H,W) float32 in [0,1], all three
        const id = this.sent++
        return new Promise((resolve, reject) => {
            this.waiting.set(id, {resolve, reject})
            this.worker.postMessage({id, ct, mri, height, width})
        })
    }
}
