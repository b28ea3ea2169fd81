// Files: what they are, and how their bytes are unpacked.

export class Refused extends Error {} // its message is one line, names the file and says what to do

export const percent = share => share >= .001 ? `${(100*share).toFixed(1)}%` : 'under 0.1%'

const MOST_BYTES = 2**30 // of a file
const READ = ['png', 'jpeg', 'nifti']
const KINDS = [ // how a file begins and what it is; with the remedy where it is not read
    [/^\x89PNG\r\n/, 'png'],
    [/^\xff\xd8\xff/, 'jpeg'],
    [/^\x1f\x8b/, 'gzip'],
    [/^(\x5c\x01\0\0|\0\0\x01\x5c)/, 'nifti'],
    [/^(\x1c\x02\0\0|\0\0\x02\x1c)/, 'NIfTI of version 2: save it as version 1'],
    [/^(II|MM)[*+\0]/, 'a TIFF file: save it as PNG, or use medfusion_fuse'],
    [/^BM/, 'a BMP file: save it as PNG'],
    [/^GIF8/, 'a GIF file: save it as PNG'],
    [/^RIFF/, 'a WebP file: save it as PNG'],
    [/^%PDF/, 'a PDF document: export the image as PNG'],
    [/^[^]{128}DICM/, 'a DICOM file: convert it to .nii.gz, or use medfusion_fuse, which reads it'],
    [/^PK/, 'a zip archive: unpack it first'],
    [/^NRRD/, 'a volume in NRRD: save it as .nii.gz'],
]

const UNKNOWN = 'not a PNG, JPEG or NIfTI file, or damaged: choose another file'

// The bytes of a file, decompressed, and which of READ it is.
export async function read(file) {
    const {name} = file
    if (file.size > MOST_BYTES) throw new Refused(`${name} is over 1 GiB: crop it, or use medfusion_fuse`)
    let bytes = new Uint8Array(await file.arrayBuffer()), kind = sniff(bytes)
    if (kind === 'gzip') {
        bytes = await inflated(bytes, 'gzip').catch(() => {
            throw new Refused(`${name} is truncated or damaged: copy it again, or gunzip it first`)
        })
        kind = sniff(bytes)
    }
    if (READ.includes(kind)) return {name, bytes, kind}
    throw new Refused(`${name} is ${kind ?? UNKNOWN}`)
}

function sniff(bytes) {
    const start = String.fromCharCode(...bytes.subarray(0, 132))
    return KINDS.find(([pattern]) => pattern.test(start))?.[1]
}

// format: 'gzip' or 'deflate'; damaged bytes raise TypeError
export const inflated = (bytes, format) => through(bytes, new DecompressionStream(format))
export const deflated = (bytes, format) => through(bytes, new CompressionStream(format))

async function through(bytes, stream) {
    return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer())
}
