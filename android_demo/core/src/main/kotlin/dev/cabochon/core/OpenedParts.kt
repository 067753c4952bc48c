package dev.cabochon.core

import java.io.Closeable

/** What a constructor has opened or was given: where one part fails, those before it are closed. */
class OpenedParts(vararg given: AutoCloseable) : Closeable {
    private val parts = ArrayList(given.asList())

    /** The part that is made, to be closed with the others where it can be. */
    fun <T> open(make: () -> T): T = try {
        make().also { if (it is AutoCloseable) parts.add(it) }
    } catch (error: Throwable) {
        close()
        throw error
    }

    /** The last one first. */
    override fun close() {
        while (parts.isNotEmpty()) parts.removeAt(parts.size - 1).close()
    }
}
