package dev.cabochon.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class SamplerTest {
    private fun logits() = floatArrayOf(1f, 3f, 2f, 2.99995f, -1f)

    @Test
    fun `the likeliest token is taken, of nearly equal ones the lowest`() {
        assertEquals(1, Sampler(SamplingSettings(), emptyList(), 0.0).choose(logits()))
        assertEquals(1, Sampler(SamplingSettings(), emptyList(), 0.0).choose(floatArrayOf(0f, 2.99995f, 3f)))
    }

    @Test
    fun `a suppressed token is never taken`() {
        assertEquals(3, Sampler(SamplingSettings(), listOf(1), 30.0).choose(logits()))
        val sampler = Sampler(SamplingSettings(temperature = 5.0, seed = 1), listOf(1), 30.0)
        assertTrue((0 until 200).none { sampler.choose(logits()) == 1 })
    }

    @Test
    fun `top-k and top-p keep the likeliest candidates`() {
        val settings = SamplingSettings(temperature = 1.0, topK = 3, topP = 0.5)
        val kept = Sampler(settings, emptyList(), 0.0).candidates(floatArrayOf(0f, 3f, 2f, 3f, -1f))
        assertEquals(listOf(1, 3), kept.map { it.token })
        assertEquals(listOf(0.5, 0.5), kept.map { it.probability })
        val certain = Sampler(settings.copy(topP = 0.01), emptyList(), 0.0).candidates(floatArrayOf(0f, 3f, 2f))
        assertEquals(listOf(1), certain.map { it.token })
    }

    @Test
    fun `tokens are drawn as often as they are likely, and the same with the same seed`() {
        fun draw(seed: Int) = Sampler(SamplingSettings(1.0, seed = seed), emptyList(), 0.0).let { sampler ->
            List(4000) { sampler.choose(floatArrayOf(0f, 1.0986123f)) } // 1 to 3
        }
        assertEquals(0.75, draw(7).average(), 0.03)
        assertEquals(draw(7), draw(7))
    }

    @Test
    fun `impossible settings are refused`() {
        assertRefused("impossible") { SamplingSettings(temperature = -1.0) }
        assertRefused("impossible") { SamplingSettings(topP = 0.0) }
    }
}
