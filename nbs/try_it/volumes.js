// Two volumes on one grid: read, fused slice by slice, shown, saved.
import { Refused } from './files.js'
import { canonical, forSlice, inWords, readNIfTI, sameGrid, sliceAxis, slicing, writeNIfTI } from './nifti.js'
import { TRAINED, clip, hasAir, mriRange, throughWindow, weights, whyNotHU } from './numbers.js'

const WHITE = 4095 // the largest number of the saved file: 12 bits, as the package writes it

// Refused unless the first is a CT in Hounsfield units and the second is none.
function checkKinds(ct, mri) {
    const why = whyNotHU(ct.values), swapped = hasAir(mri.values)
    if (why && swapped) throw new Refused(`${mri.name} is the CT by its values, ${ct.name} is not: swap them`)
    if (swapped) throw new Refused(`${mri.name} is a CT, its values are Hounsfield units: choose the MRI`)
    if (why)
        throw new Refused(`${ct.name} is no CT in Hounsfield units (${why}): take the original, or use `
            + 'medfusion_fuse, which looks closer and has --ct-units other')
}

export class Volumes {
    static open(ctFile, mriFile) {
        const notes = [], read = file => readNIfTI(file.name, file.bytes, note => notes.push(note))
        const ct = read(ctFile), mri = read(mriFile)
        checkKinds(ct, mri)
        const [black, white] = mriRange(mri.name, mri.values)
        mri.values.forEach((x, i) => { mri.values[i] = clip((x - black)/(white - black)) })
        const a = canonical(ct), b = canonical(mri)
        if (!sameGrid(a.grid, b.grid))
            throw new Refused(`the grids differ: ${a.name} has ${inWords(a.grid)}, ${b.name} has `
                + `${inWords(b.grid)}; fuse them with medfusion_fuse, which registers and resamples`)
        return new Volumes(a, b, notes)
    }

    constructor(ct, mri, notes) {
        const {grid} = ct, axis = sliceAxis(grid), n = ct.values.length
        Object.assign(this, {ct, mri, notes, grid, axis, slices: slicing(grid, axis), run: 0})
        this.fused = new Uint16Array(n) // WHITE is 1
        this.shown = [0, 1, 2].map(() => new Uint8Array(n)) // CT, fused or blended, MRI: what is seen
        this.at = grid.size.map(m => m >> 1) // the voxel that is looked at
        mri.values.forEach((x, i) => { this.shown[2][i] = Math.round(255*x) })
        this.setWindow(TRAINED)
    }

    setWindow(window) {
        const [seen] = this.shown
        this.window = window
        this.ct.values.forEach((hu, i) => { seen[i] = Math.round(255*throughWindow(hu, window)) })
    }

    // Slice by slice, the nearest to the one that is looked at first; a later call ends this one.
    async fuse(engine, progress) { // true when it is done
        const run = ++this.run, {n} = this.slices, left = new Set(Array(n).keys())
        const away = k => Math.abs(k - this.at[this.axis])
        while (left.size) {
            const k = [...left].reduce((a, b) => away(b) < away(a) ? b : a)
            const fused = await this.fuseSlice(engine, k)
            if (run !== this.run) return false
            forSlice(this.slices, k, (i, at) => { this.fused[at] = Math.round(WHITE*clip(fused[i])) })
            left.delete(k)
            progress(n - left.size, n)
        }
        return true
    }

    async fuseSlice(engine, k) { // (H,W) in [0,1]
        const {height, width} = this.slices, ct = new Float32Array(height*width), mri = ct.slice()
        forSlice(this.slices, k, (i, at) => {
            ct[i] = throughWindow(this.ct.values[at], this.window)
            mri[i] = this.mri.values[at]
        })
        const brighter = ct.map((x, i) => Math.max(x, mri[i]))
        return brighter.every(x => x <= 1/255) ? brighter : engine.fuse(ct, mri, height, width)
    }

    blend(blend) { // what is seen in the middle, see weights
        const [ct, seen, mri] = this.shown, {fused} = this, [u, v, w] = weights(blend), scale = 255*v/WHITE
        for (let i = 0; i < seen.length; i++) seen[i] = Math.round(u*ct[i] + scale*fused[i] + w*mri[i])
    }

    save() { return writeNIfTI('fused.nii.gz', this.grid, Int16Array.from(this.fused), 1/WHITE) }

    close() { this.run++ }
}
