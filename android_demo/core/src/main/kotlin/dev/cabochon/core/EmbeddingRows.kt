package dev.cabochon.core

import java.io.Closeable
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer

/** Row access to an embedding table that stays on disk: `embedding_table.py` is the same in Python. */
class EmbeddingRows(folder: File, private val table: EmbeddingTable) : Closeable {
    private val parts = OpenedParts()
    private val values = open(folder, table.values, table.columns * table.bits / 8)
    private val blocks = if (table.isInteger) table.columns / table.blockSize else 0
    private val halfScales = table.scaleStorage == "float16"
    private val scales = table.scales?.let { open(folder, it, blocks * if (halfScales) 2 else 4) }
    private val zeroPoints = table.zeroPoints?.let { open(folder, it, (blocks * table.bits + 7) / 8) }
    private val rowScale = table.rowScale.toFloat()

    val columns: Int get() = table.columns

    /** Writes the scaled row of a token, [columns] values. */
    fun lookUp(token: Int, out: FloatBuffer) {
        require(token in 0 until table.rows) { "token $token is outside the table of ${table.rows} rows" }
        val row = values.read(token)
        when (table.storage) {
            "float32" -> repeat(table.columns) { out.put(row.getFloat(4 * it) * rowScale) }
            "float16" -> repeat(table.columns) { out.put(widenHalf(row.getShort(2 * it)) * rowScale) }
            "bfloat16" -> repeat(table.columns) {
                out.put(Float.fromBits(row.getShort(2 * it).toInt() shl 16) * rowScale)
            }
            else -> lookUpIntegers(token, row, out)
        }
    }

    override fun close() = parts.close()

    private fun open(folder: File, region: RowRegion, rowBytes: Int) =
        parts.open { Region(folder, region, table.rows, rowBytes) }

    private fun lookUpIntegers(token: Int, row: ByteBuffer, out: FloatBuffer) {
        val scaleRow = scales!!.read(token)
        val zeroRow = zeroPoints?.read(token)
        for (block in 0 until blocks) {
            val scale = if (halfScales) widenHalf(scaleRow.getShort(2 * block)) else scaleRow.getFloat(4 * block)
            // Zero points are stored like the values, less the same middle.
            val zero = if (zeroRow == null) 0 else integer(zeroRow, block)
            for (index in block * table.blockSize until (block + 1) * table.blockSize) {
                out.put((integer(row, index) - zero).toFloat() * scale * rowScale)
            }
        }
    }

    /** Unsigned ones less the middle of their range; of those that share a byte, the first has its lowest bits. */
    private fun integer(row: ByteBuffer, index: Int): Int {
        val bits = table.bits
        val byte = row.get(index * bits / 8).toInt()
        val code = (byte shr (index * bits % 8)) and ((1 shl bits) - 1)
        val middle = 1 shl (bits - 1)
        // Turning the sign bit around adds the middle to a two's complement.
        return (if (table.signed) code xor middle else code) - middle
    }

    private class Region(folder: File, private val region: RowRegion, rows: Int, private val rowBytes: Int) : Closeable {
        private val file = File(folder, requireInside(region.file, "manifest.json"))
        private val content = if (file.isFile) {
            RandomAccessFile(file, "r")
        } else {
            throw ModelException("${region.file} is missing: copy the model again.")
        }

        init {
            // Divided, since a product of what a file says could overflow.
            val room = content.length() - region.offset - rowBytes
            if (rowBytes > region.stride || room < 0 || room / region.stride < rows - 1) {
                content.close()
                throw ModelException("${region.file} is too short for its $rows embedding rows: copy the model again.")
            }
        }

        fun read(row: Int): ByteBuffer {
            val bytes = ByteBuffer.allocate(rowBytes).order(ByteOrder.LITTLE_ENDIAN)
            val start = region.offset + row * region.stride
            while (bytes.hasRemaining()) {
                if (content.channel.read(bytes, start + bytes.position()) < 0) {
                    throw ModelException("${region.file} was cut while it was in use: copy the model again.")
                }
            }
            bytes.flip()
            return bytes
        }

        override fun close() = content.close()
    }

    companion object {
        /** IEEE 754 binary16 to binary32. */
        fun widenHalf(half: Short): Float {
            val bits = half.toInt() and 0xFFFF
            val sign = bits and 0x8000 shl 16
            val exponent = bits shr 10 and 0x1F
            val fraction = bits and 0x3FF
            if (exponent == 0) return (if (sign != 0) -1f else 1f) * fraction * Float.fromBits(0x33800000) // 2^-24
            val widened = if (exponent == 0x1F) 0xFF else exponent + 112
            return Float.fromBits(sign or (widened shl 23) or (fraction shl 13))
        }
    }
}
