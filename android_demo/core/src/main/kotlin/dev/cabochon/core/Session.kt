package dev.cabochon.core

import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer

enum class TensorType(val bytes: Int) { FLOAT32(4), INT32(4), INT64(8) }

/**
 * An array in memory that an engine reads and writes where it lies.
 *
 * Args: memory: direct and in native order; [offset] is where the first value lies in it.
 */
class Tensor(val type: TensorType, val shape: IntArray, val memory: ByteBuffer, val offset: Int) {
    /** Number of values. */
    val count: Int = shape.fold(1L) { product, size -> product * size }.also { require(it <= Int.MAX_VALUE / 8) }.toInt()

    init {
        require(offset >= 0 && offset + count.toLong() * type.bytes <= memory.capacity()) { "a tensor leaves its memory" }
    }

    /** The bytes of this tensor alone. */
    fun bytes(): ByteBuffer {
        val part = memory.duplicate()
        part.limit(offset + count * type.bytes).position(offset)
        return part.slice().order(memory.order())
    }

    fun floats(): FloatBuffer = bytes().asFloatBuffer()

    fun integers(): IntBuffer = bytes().asIntBuffer()

    fun longs(): LongBuffer = bytes().asLongBuffer()

    /** Rows of a cache [1, 1, rows, size], in the same memory. */
    fun rows(first: Int, count: Int): Tensor {
        require(shape.size == 4 && shape[1] == 1 && first >= 0 && first + count <= shape[2]) { "no such rows" }
        val rowBytes = shape[3] * type.bytes
        return Tensor(type, intArrayOf(1, 1, count, shape[3]), memory, offset + first * rowBytes)
    }
}

/** A graph that an engine has loaded. */
interface Session : AutoCloseable {
    /** Reads the inputs and writes the outputs, by name; an output may lie in the memory of an input. */
    fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>)
}

/** Loads graphs and makes memory for their tensors. */
interface Engine : AutoCloseable {
    /** The name of its graphs in the manifest. */
    val name: String

    /** ModelException where the graph cannot be loaded. */
    fun open(path: String): Session

    /** Zeros. */
    fun allocate(type: TensorType, vararg shape: Int): Tensor
}
