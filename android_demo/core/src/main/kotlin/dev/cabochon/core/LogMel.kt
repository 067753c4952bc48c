package dev.cabochon.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.PI
import kotlin.math.cos
import kotlin.math.hypot
import kotlin.math.ln
import kotlin.math.sin

/** The audio frontend of one checkpoint; its filters come from the converter. */
data class LogMelParameters(
    val sampleRate: Int,
    val frameLength: Int,
    val hopLength: Int,
    val fftLength: Int,
    val melBins: Int,
    val melFloor: Double,
) {
    init {
        require(minOf(sampleRate, frameLength, hopLength, melBins) > 0) { "the audio frontend has a size below 1" }
        require(fftLength >= frameLength && fftLength and (fftLength - 1) == 0) {
            "fft_length $fftLength is not a power of two from frame_length $frameLength on"
        }
    }

    /** Frames of a clip; the reference looks one sample past a frame's end, hence the -1. */
    fun frameCount(samples: Int): Int {
        val padded = samples + frameLength / 2
        return maxOf(0, (padded - frameLength - 1).floorDiv(hopLength) + 1)
    }
}

/** Waveform to log-mel frames, equal to `runtime/cabochon/log_mel.py` up to rounding. */
class LogMel(private val parameters: LogMelParameters, filters: ByteArray) {
    private val bins = parameters.fftLength / 2 + 1
    private val filters: DoubleArray // [bins, melBins]
    private val firstBin = IntArray(parameters.melBins)
    private val lastBin = IntArray(parameters.melBins)
    private val window = FloatArray(parameters.frameLength) {
        (0.5 - 0.5 * cos(2 * PI * it / parameters.frameLength)).toFloat()
    }
    private val cosines = DoubleArray(parameters.fftLength / 2) { cos(2 * PI * it / parameters.fftLength) }
    private val sines = DoubleArray(parameters.fftLength / 2) { -sin(2 * PI * it / parameters.fftLength) }

    init {
        if (filters.size != bins * parameters.melBins * Double.SIZE_BYTES) {
            throw ModelException(
                "the mel filters have ${filters.size} bytes, expected ${bins * parameters.melBins * Double.SIZE_BYTES}: " +
                    "write the app's assets again.",
            )
        }
        val values = ByteBuffer.wrap(filters).order(ByteOrder.LITTLE_ENDIAN).asDoubleBuffer()
        this.filters = DoubleArray(values.remaining()).also { values.get(it) }
        for (mel in 0 until parameters.melBins) {
            val used = (0 until bins).filter { this.filters[it * parameters.melBins + mel] != 0.0 }
            firstBin[mel] = used.firstOrNull() ?: 0
            lastBin[mel] = used.lastOrNull() ?: -1
        }
    }

    /** Mono samples in [-1, 1] to [frames, melBins], row by row. */
    fun compute(waveform: FloatArray): FloatArray {
        val frames = parameters.frameCount(waveform.size)
        val result = FloatArray(frames * parameters.melBins)
        val real = DoubleArray(parameters.fftLength)
        val imaginary = DoubleArray(parameters.fftLength)
        val magnitudes = DoubleArray(bins)
        for (frame in 0 until frames) {
            real.fill(0.0)
            imaginary.fill(0.0)
            // "Semicausal" padding: the first frame is centred on the first sample.
            val start = frame * parameters.hopLength - parameters.frameLength / 2
            for (index in 0 until parameters.frameLength) {
                val sample = start + index
                if (sample in waveform.indices) real[index] = (waveform[sample] * window[index]).toDouble()
            }
            transform(real, imaginary)
            for (bin in 0 until bins) magnitudes[bin] = hypot(real[bin], imaginary[bin]) // magnitude, not power
            for (mel in 0 until parameters.melBins) {
                var sum = 0.0
                for (bin in firstBin[mel]..lastBin[mel]) sum += magnitudes[bin] * filters[bin * parameters.melBins + mel]
                result[frame * parameters.melBins + mel] = ln(sum + parameters.melFloor).toFloat()
            }
        }
        return result
    }

    /** Fourier transform in place: Cooley and Tukey's, radix 2. */
    private fun transform(real: DoubleArray, imaginary: DoubleArray) {
        val size = real.size
        var reversed = 0
        for (index in 1 until size) {
            var bit = size shr 1
            while (reversed and bit != 0) {
                reversed = reversed xor bit
                bit = bit shr 1
            }
            reversed = reversed or bit
            if (index < reversed) {
                real[index] = real[reversed].also { real[reversed] = real[index] }
                imaginary[index] = imaginary[reversed].also { imaginary[reversed] = imaginary[index] }
            }
        }
        var length = 2
        while (length <= size) {
            val half = length / 2
            val step = size / length
            for (start in 0 until size step length) {
                for (offset in 0 until half) {
                    val cosine = cosines[offset * step]
                    val sine = sines[offset * step]
                    val upper = start + offset
                    val lower = upper + half
                    val turnedReal = real[lower] * cosine - imaginary[lower] * sine
                    val turnedImaginary = real[lower] * sine + imaginary[lower] * cosine
                    real[lower] = real[upper] - turnedReal
                    imaginary[lower] = imaginary[upper] - turnedImaginary
                    real[upper] += turnedReal
                    imaginary[upper] += turnedImaginary
                }
            }
            length *= 2
        }
    }
}
