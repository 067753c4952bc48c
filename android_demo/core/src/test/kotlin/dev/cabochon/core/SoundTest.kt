package dev.cabochon.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test

class SoundTest {
    private val logMel = Golden.model.readLogMel()

    @Test
    fun `a WAV file holds the samples that Python reads`() {
        Golden.spoken.forEach { assertClose(it.sound, it.matrix("waveform"), it.readSound().waveform, 0f) }
    }

    /** Python transforms in single precision: 1e-4 of a logarithm are 0.01 % of a magnitude. */
    @Test
    fun `log-mel frames are those of Python`() {
        Golden.spoken.forEach { assertClose(it.sound, it.matrix("log_mel"), logMel.compute(it.readSound().waveform), 1e-4f) }
    }

    @Test
    fun `a clip below one frame has none`() {
        assertEquals(0, logMel.compute(FloatArray(0)).size)
        assertEquals(0, logMel.compute(FloatArray(160)).size)
    }

    @Test
    fun `what was written is read again`() {
        val samples = shortArrayOf(0, 1, -1, Short.MAX_VALUE, Short.MIN_VALUE)
        val sound = Wav.read(Wav.write(samples, 16000))
        assertEquals(16000, sound.sampleRate)
        assertArrayEquals(FloatArray(5) { samples[it] / 32768f }, sound.waveform, 0f)
        assertArrayEquals(samples, sound.toShorts())
        assertArrayEquals(shortArrayOf(Short.MAX_VALUE), Sound(floatArrayOf(1f), 16000).toShorts())
    }

    @Test
    fun `damaged sounds are refused in a sentence`() {
        val whole = Wav.write(ShortArray(100) { it.toShort() }, 16000)
        assertRefused("cut off") { Wav.read(whole.copyOf(whole.size - 10)) }
        assertRefused("no WAV file") { Wav.read("hello".toByteArray()) }
        assertRefused("no samples") { Wav.read(Wav.write(ShortArray(0), 16000)) }
        assertRefused("no samples") { Wav.read(whole.copyOf(40)) }
        assertRefused("8-bit") { Wav.read(whole.clone().also { it[34] = 8 }) }
        // A length that a program put which wrote to a pipe.
        val streamed = whole.clone().also { bytes -> (40..43).forEach { bytes[it] = -1 } }
        assertEquals(100, Wav.read(streamed).waveform.size)
    }
}
