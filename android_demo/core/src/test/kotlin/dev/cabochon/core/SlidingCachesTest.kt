package dev.cabochon.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.random.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class SlidingCachesTest {
    /** Each row holds its position, so that what a run sees can be compared with what it should see. */
    @Test
    fun `whatever the runs, each sees its window in order`() {
        val random = Random(3)
        repeat(100) {
            val window = random.nextInt(2, 20)
            val capacity = window + random.nextInt(1, 40)
            val memory = ByteBuffer.allocateDirect(4 * capacity).order(ByteOrder.nativeOrder())
            val buffer = Tensor(TensorType.FLOAT32, intArrayOf(1, 1, capacity, 1), memory, 0)
            val caches = SlidingCaches(listOf(buffer), window, capacity)
            var position = 0
            repeat(30) {
                val count = random.nextInt(1, capacity - window + 2)
                val rows = caches.makeRoom(position, count)
                repeat(count) { buffer.floats().put(rows.last - count + 1 + it, (position + it).toFloat()) }
                position += count
                val seen = rows.map { buffer.floats().get(it).toInt() }
                val first = maxOf(0, position - count - (window - 1))
                assertEquals((first until position).toList(), seen)
            }
        }
    }

    @Test
    fun `a run cannot begin where nothing is held`() {
        val memory = ByteBuffer.allocateDirect(64).order(ByteOrder.nativeOrder())
        val caches = SlidingCaches(listOf(Tensor(TensorType.FLOAT32, intArrayOf(1, 1, 8, 1), memory, 0)), 4, 8)
        assertThrows(IllegalArgumentException::class.java) { caches.makeRoom(3, 1) }
    }
}
