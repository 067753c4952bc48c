package dev.cabochon.core

import java.io.Reader

/**
 * Reads JSON value by value: a tokenizer of 262 144 tokens and 514 906 merges would not fit a phone's heap as a tree of
 * objects.
 *
 * A small strict reader of RFC 8259; wrong syntax is a [ModelException] that names the file.
 */
class JsonReader(private val source: Reader, private val name: String) {
    private val buffer = CharArray(BUFFER_LENGTH)
    private var length = 0
    private var position = 0

    /** Calls [member] with each key; it has to read exactly one value. */
    fun readObject(member: (String) -> Unit) {
        expect('{')
        if (skipIfNext('}')) return
        do {
            skipBlanks()
            val key = readString()
            expect(':')
            member(key)
        } while (skipIfNext(','))
        expect('}')
    }

    /** Calls [element] before each element; it has to read exactly one value. */
    fun readArray(element: () -> Unit) {
        expect('[')
        if (skipIfNext(']')) return
        do element() while (skipIfNext(','))
        expect(']')
    }

    fun readString(): String {
        expect('"')
        val text = StringBuilder()
        while (true) {
            if (!fill()) fail("its end too early")
            val start = position
            while (position < length && buffer[position] != '"' && buffer[position] != '\\' && buffer[position] >= ' ') position++
            val count = position - start
            // The whole text lies in the buffer, as almost all of them do.
            if (text.isEmpty() && position < length && buffer[position] == '"') {
                position++
                return String(buffer, start, count)
            }
            text.append(buffer, start, count)
            if (position == length) continue
            when (next()) {
                '"' -> return text.toString()
                '\\' -> text.append(readEscape())
                else -> fail("a control character in a text")
            }
        }
    }

    /** Any value: a map, a list, a string, a long, a double, a boolean or null. */
    fun readValue(depth: Int = 0): Any? {
        if (depth > DEEPEST) fail("values deeper than $DEEPEST")
        return when (peek()) {
            '{' -> LinkedHashMap<String, Any?>().also { map ->
                readObject { key -> if (map.put(key, readValue(depth + 1)) != null) fail("the key $key twice") }
            }
            '[' -> ArrayList<Any?>().also { list -> readArray { list.add(readValue(depth + 1)) } }
            '"' -> readString()
            else -> readWord()
        }
    }

    fun readInt(): Int {
        val value = readValue()
        return asInt(value) ?: fail("$value for a number")
    }

    /** Whether the next value begins so. */
    fun isNext(letter: Char): Boolean = peek() == letter

    fun skipValue(depth: Int = 0) {
        if (depth > DEEPEST) fail("values deeper than $DEEPEST")
        when (peek()) {
            '{' -> readObject { skipValue(depth + 1) }
            '[' -> readArray { skipValue(depth + 1) }
            else -> readValue()
        }
    }

    fun requireEnd() {
        skipBlanks()
        if (fill()) fail("text behind the end")
    }

    private fun readWord(): Any? {
        val word = StringBuilder()
        while (fill() && (buffer[position].isLetterOrDigit() || buffer[position] in "+-.")) word.append(next())
        val text = word.toString()
        return when {
            text == "true" -> true
            text == "false" -> false
            text == "null" -> null
            INTEGER.matches(text) -> text.toLongOrNull() ?: fail("the number $text")
            NUMBER.matches(text) -> text.toDouble()
            else -> fail("\"$text\" for a value")
        }
    }

    private fun readEscape(): Char = when (val letter = next()) {
        '"', '\\', '/' -> letter
        'b' -> '\b'
        'f' -> '\u000c'
        'n' -> '\n'
        'r' -> '\r'
        't' -> '\t'
        'u' -> (String(CharArray(4) { next() }).toIntOrNull(16) ?: fail("a wrong escape")).toChar()
        else -> fail("the escape \\$letter")
    }

    private fun peek(): Char {
        skipBlanks()
        if (!fill()) fail("its end too early")
        return buffer[position]
    }

    private fun skipIfNext(letter: Char): Boolean = (peek() == letter).also { if (it) position++ }

    private fun expect(letter: Char) {
        if (!skipIfNext(letter)) fail("'${buffer[position]}' instead of '$letter'")
    }

    private fun next(): Char {
        if (!fill()) fail("its end too early")
        return buffer[position++]
    }

    private fun skipBlanks() {
        while (fill() && buffer[position] in " \n\r\t") position++
    }

    private fun fill(): Boolean {
        if (position < length) return true
        length = source.read(buffer)
        position = 0
        return length > 0
    }

    private fun fail(found: String): Nothing =
        throw ModelException("$name is no readable JSON (found $found): copy the model's files again.")

    private companion object {
        const val BUFFER_LENGTH = 1 shl 16
        const val DEEPEST = 64
        val INTEGER = Regex("-?(0|[1-9][0-9]*)")
        val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")
    }
}

private fun asInt(value: Any?): Int? = (value as? Long)?.takeIf { it in Int.MIN_VALUE..Int.MAX_VALUE }?.toInt()

/** A JSON object whose keys have to be known: an unknown one may change what a model computes. */
class JsonObject(private val name: String, private val values: Map<String, Any?>) {
    private val asked = HashSet<String>()

    fun text(key: String): String = value(key) as? String ?: fail(key, "a text")

    fun int(key: String): Int = asInt(value(key)) ?: fail(key, "a number")

    fun long(key: String): Long = value(key) as? Long ?: fail(key, "a number")

    fun double(key: String): Double = (value(key) as? Number)?.toDouble() ?: fail(key, "a number")

    fun boolean(key: String): Boolean = value(key) as? Boolean ?: fail(key, "true or false")

    fun integers(key: String): List<Int> = list(key).map { asInt(it) ?: fail(key, "a list of numbers") }

    fun texts(key: String): List<String> = list(key).map { it as? String ?: fail(key, "a list of texts") }

    fun child(key: String): JsonObject = childOrNull(key) ?: fail(key, "an object")

    /** Null where the value is null. */
    fun childOrNull(key: String): JsonObject? = value(key)?.let { asObject(key, it) }

    fun children(key: String): List<JsonObject> = list(key).map { asObject(key, it) }

    fun textOrNull(key: String): String? = value(key)?.let { it as? String ?: fail(key, "a text or null") }

    /** The same for a key that may be missing. */
    fun optionalChild(key: String): JsonObject? = if (key in values) childOrNull(key) else null.also { asked.add(key) }

    /** Keys that are known and mean nothing to this app. */
    fun ignore(vararg keys: String) {
        asked.addAll(keys)
    }

    fun requireNoOther() {
        val unknown = values.keys.firstOrNull { it !in asked } ?: return
        throw ModelException("$name has the unknown key $unknown: install an app of the converter's version.")
    }

    val keys: Set<String> get() = values.keys

    private fun list(key: String): List<*> = value(key) as? List<*> ?: fail(key, "a list")

    @Suppress("UNCHECKED_CAST")
    private fun asObject(key: String, value: Any?): JsonObject =
        JsonObject("$name, $key", value as? Map<String, Any?> ?: fail(key, "an object"))

    private fun value(key: String): Any? {
        asked.add(key)
        if (key !in values) throw ModelException("$name lacks $key: convert the checkpoint again.")
        return values[key]
    }

    private fun fail(key: String, expected: String): Nothing =
        throw ModelException("$name: $key is ${values[key]}, expected $expected: convert the checkpoint again.")

    companion object {
        @Suppress("UNCHECKED_CAST")
        fun read(source: Reader, name: String): JsonObject = source.buffered().use {
            val reader = JsonReader(it, name)
            val value = reader.readValue() as? Map<String, Any?>
            reader.requireEnd()
            JsonObject(name, value ?: throw ModelException("$name holds no object: copy the model's files again."))
        }
    }
}
