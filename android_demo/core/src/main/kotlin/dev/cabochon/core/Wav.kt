package dev.cabochon.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.roundToInt

/** A mono waveform in [-1, 1]. */
class Sound(val waveform: FloatArray, val sampleRate: Int) {
    val seconds: Double get() = waveform.size.toDouble() / sampleRate

    /** The samples that a microphone gave: [Wav.read] has them divided by 32768. */
    fun toShorts(): ShortArray = ShortArray(waveform.size) {
        (waveform[it] * 32768f).roundToInt().coerceIn(Short.MIN_VALUE.toInt(), Short.MAX_VALUE.toInt()).toShort()
    }
}

/** WAV files: 16-bit or float samples, any number of channels; what the app records and what engines take. */
object Wav {
    private const val PCM = 1
    private const val FLOAT = 3
    private const val EXTENSIBLE = 0xFFFE
    private const val HEADER_BYTES = 44

    /** Lengths from here on are placeholders of programs that write to a pipe: `wav.py` names them. */
    private const val STREAMED_LENGTH = 0x7FFF_0000L

    fun read(content: ByteArray, name: String = "the sound"): Sound {
        val bytes = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
        fun tag(at: Int) = String(content, at, 4, Charsets.ISO_8859_1)
        if (content.size < 12 || tag(0) != "RIFF" || tag(8) != "WAVE") {
            throw ModelException("$name is no WAV file: record it, or save it as 16-bit WAV.")
        }
        var format = 0
        var channels = 0
        var sampleRate = 0
        var bits = 0
        var position = 12
        while (position + 8 <= content.size) {
            val length = bytes.getInt(position + 4).toLong() and 0xFFFF_FFFFL
            val start = position + 8
            when (tag(position)) {
                "fmt " -> {
                    if (length < 16 || start + length > content.size) throw ModelException("$name is cut off: copy it again.")
                    format = bytes.getShort(start).toInt() and 0xFFFF
                    if (format == EXTENSIBLE && length >= 40) format = bytes.getShort(start + 24).toInt() and 0xFFFF
                    channels = bytes.getShort(start + 2).toInt() and 0xFFFF
                    sampleRate = bytes.getInt(start + 4)
                    bits = bytes.getShort(start + 14).toInt() and 0xFFFF
                }
                "data" -> {
                    val available = content.size - start
                    if (length > available && length < STREAMED_LENGTH) {
                        throw ModelException("$name is cut off: ${length - available} bytes are missing, copy it again.")
                    }
                    if (channels == 0 || sampleRate <= 0) throw ModelException("$name states no format: save it as WAV again.")
                    val sound = bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN)
                    sound.position(start).limit(start + minOf(length, available.toLong()).toInt())
                    return Sound(mixDown(sound, format, bits, channels, name), sampleRate)
                }
            }
            position = (start + length + length % 2).coerceAtMost(Int.MAX_VALUE.toLong()).toInt()
        }
        throw ModelException("$name holds no samples: expected speech.")
    }

    /** Mono 16-bit samples with a header. */
    fun write(samples: ShortArray, sampleRate: Int): ByteArray {
        val dataBytes = samples.size * Short.SIZE_BYTES
        val bytes = ByteBuffer.allocate(HEADER_BYTES + dataBytes).order(ByteOrder.LITTLE_ENDIAN)
        bytes.put("RIFF".toByteArray()).putInt(HEADER_BYTES - 8 + dataBytes).put("WAVE".toByteArray())
        bytes.put("fmt ".toByteArray()).putInt(16).putShort(PCM.toShort()).putShort(1).putInt(sampleRate)
        bytes.putInt(sampleRate * Short.SIZE_BYTES).putShort(Short.SIZE_BYTES.toShort()).putShort(Short.SIZE_BITS.toShort())
        bytes.put("data".toByteArray()).putInt(dataBytes)
        samples.forEach { bytes.putShort(it) }
        return bytes.array()
    }

    private fun mixDown(bytes: ByteBuffer, format: Int, bits: Int, channels: Int, name: String): FloatArray {
        val sampleBytes = when {
            format == PCM && bits == Short.SIZE_BITS -> Short.SIZE_BYTES
            format == FLOAT && bits == Float.SIZE_BITS -> Float.SIZE_BYTES
            else -> throw ModelException("$name has $bits-bit samples of format $format: save it as 16-bit WAV.")
        }
        val frames = bytes.remaining() / (sampleBytes * channels)
        if (frames == 0) throw ModelException("$name holds no samples: expected speech.")
        return FloatArray(frames) {
            var sum = 0f
            repeat(channels) {
                val sample = if (format == PCM) bytes.short / 32768f else bytes.float
                if (sample.isNaN()) throw ModelException("$name holds samples that are no numbers: save it as 16-bit WAV.")
                sum += sample.coerceIn(-1f, 1f)
            }
            sum / channels
        }
    }
}
