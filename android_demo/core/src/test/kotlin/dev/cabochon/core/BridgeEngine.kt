package dev.cabochon.core

import java.io.BufferedReader
import java.io.Closeable
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel

/** onnxruntime in a Python process; tensors lie in a file that both have mapped: see bridge/onnxruntime_bridge.py. */
class BridgeEngine(python: String, script: String) : Engine, Closeable {
    private val file = File.createTempFile("bridge", ".memory")
    private val memory: ByteBuffer = RandomAccessFile(file, "rw").use {
        it.setLength(MEMORY_BYTES)
        it.channel.map(FileChannel.MapMode.READ_WRITE, 0, MEMORY_BYTES).order(ByteOrder.nativeOrder())
    }
    private val process = ProcessBuilder(python, script, file.path).redirectError(ProcessBuilder.Redirect.INHERIT).start()
    private val replies: BufferedReader = process.inputStream.bufferedReader()
    private val commands = process.outputStream.bufferedWriter()
    private var used = 0

    override val name = "onnx"

    override fun open(path: String): Session = BridgeSession(ask("open ${File(path).absolutePath}").removePrefix("opened "))

    override fun allocate(type: TensorType, vararg shape: Int): Tensor {
        val tensor = Tensor(type, shape, memory, used)
        used += (tensor.count * type.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
        return tensor
    }

    override fun close() {
        commands.close()
        process.waitFor()
        file.delete()
    }

    private fun ask(command: String): String {
        commands.write("$command\n")
        commands.flush()
        val reply = replies.readLine() ?: throw ModelException("the bridge ended: look at what it printed.")
        if (reply.startsWith("failed ")) throw ModelException(reply.removePrefix("failed "))
        return reply
    }

    private inner class BridgeSession(private val id: String) : Session {
        override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
            val lines = inputs.map { (name, tensor) -> line("input", name, tensor) } +
                outputs.map { (name, tensor) -> line("output", name, tensor) }
            ask("run $id\n${lines.joinToString("\n")}\nend")
        }

        override fun close() = Unit

        private fun line(kind: String, name: String, tensor: Tensor): String {
            check(tensor.memory === memory) { "the tensor $name was allocated by another engine" }
            return "$kind $name ${tensor.type.name.lowercase()} ${tensor.offset} ${tensor.shape.joinToString(",")}"
        }
    }

    private companion object {
        const val MEMORY_BYTES = 256L shl 20 // pages that nobody touches take no room
        const val ALIGNMENT = 64
    }
}
