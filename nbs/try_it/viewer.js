// Three volumes of one grid beside each other, by NiiVue: one plane, one crosshair.
import { Niivue, SLICE_TYPE } from './niivue.js'
import { Refused } from './files.js'
import { niftiBytes, toMM, toVoxel } from './nifti.js'

const WHITE = 255
export const PLANES = {axial: 2, coronal: 1, sagittal: 0} // plane -> the axis across it
const TYPES = {axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL}

export class Viewer {
    static async on(canvases) { // which are visible
        if (!document.createElement('canvas').getContext('webgl2'))
            throw new Refused('volumes need WebGL 2: use a browser that has it, or fuse pictures')
        const options = {
            isRadiologicalConvention: true, // the patient's left is on the right
            interactive: matchMedia('(pointer: fine)').matches, // a finger scrolls the page
            crosshairColor: [.95, .6, .29, 1], crosshairWidth: .3, crosshairGap: 12,
            fontColor: [.85, .85, .85, 1], showAllOrientationMarkers: true,
            dragAndDropEnabled: false, logLevel: 'error',
        }
        const viewer = Object.assign(new Viewer(), {views: canvases.map(() => new Niivue(options))})
        await Promise.all(canvases.map((canvas, i) => viewer.views[i].attachToCanvas(canvas, false)))
        for (const view of viewer.views) {
            view.onLocationChange = ({mm}) => viewer.found(mm)
            view.broadcastTo(viewer.views.filter(other => other !== view)) // zoom
        }
        return viewer
    }

    // volumes: grey levels of 8 bits; moved(voxel) is called when the mouse chooses another one
    async show(grid, volumes, moved) {
        this.grid = null // nothing is told meanwhile
        for (const [i, view] of this.views.entries()) {
            if (view.volumes.length) view.removeVolumeByIndex(0)
            await view.loadFromArrayBuffer(niftiBytes(grid, volumes[i], 1, WHITE).buffer, `${i}.nii`)
        }
        Object.assign(this, {grid, moved})
    }

    update(i, volume) {
        this.views[i].volumes[0].img.set(volume)
        this.views[i].updateGLVolume()
    }

    look(plane, voxel) {
        this.at = voxel
        for (const view of this.views) {
            view.opts.sliceType = TYPES[plane]
            view.scene.crosshairPos = view.mm2frac(toMM(this.grid, voxel))
            view.drawScene()
        }
    }

    found(mm) {
        const voxel = this.grid && toVoxel(this.grid, mm)
        if (voxel?.some((x, i) => x !== this.at[i])) this.moved(voxel)
    }
}
