package dev.cabochon.demo

import android.annotation.SuppressLint
import android.content.Context
import android.media.AudioFormat
import android.media.AudioManager
import android.media.AudioRecord
import android.media.MediaRecorder
import dev.cabochon.core.Microphone
import dev.cabochon.core.ModelException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/** Records mono speech as long as it is wanted, while others are silent; the caller has the permission. */
class Recorder(context: Context, private val sampleRate: Int, private val longest: Int) : Microphone {
    private val audio = context.getSystemService(Context.AUDIO_SERVICE) as AudioManager

    @Volatile
    private var wanted = true

    override fun stop() {
        wanted = false
    }

    @SuppressLint("MissingPermission") // MainActivity asks before
    override suspend fun record(): FloatArray = withContext(Dispatchers.IO) {
        val smallest = AudioRecord.getMinBufferSize(sampleRate, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT)
        if (smallest <= 0) throw ModelException("the microphone does not record $sampleRate Hz: try another one.")
        val microphone = AudioRecord(
            MediaRecorder.AudioSource.VOICE_RECOGNITION, sampleRate, AudioFormat.CHANNEL_IN_MONO,
            AudioFormat.ENCODING_PCM_16BIT, maxOf(smallest, sampleRate),
        )
        try {
            if (microphone.state != AudioRecord.STATE_INITIALIZED) throw busy()
            withSilence {
                microphone.startRecording()
                if (microphone.recordingState != AudioRecord.RECORDSTATE_RECORDING) throw busy()
                read(microphone)
            }
        } finally {
            microphone.release()
        }
    }

    /** Music pauses and goes on behind it. A call that keeps the focus is no reason to refuse: nothing is played here. */
    @Suppress("DEPRECATION") // Android 6 has no other, and later ones still have it
    private fun <T> withSilence(record: () -> T): T {
        val listener = AudioManager.OnAudioFocusChangeListener { change -> if (change < 0) stop() }
        audio.requestAudioFocus(listener, AudioManager.STREAM_MUSIC, AudioManager.AUDIOFOCUS_GAIN_TRANSIENT_EXCLUSIVE)
        try {
            return record()
        } finally {
            audio.abandonAudioFocus(listener)
        }
    }

    private fun read(microphone: AudioRecord): FloatArray {
        val waveform = FloatArray(longest)
        val piece = ShortArray(sampleRate / 20)
        var length = 0
        while (wanted && length < longest) {
            val count = microphone.read(piece, 0, minOf(piece.size, longest - length))
            if (count < 0) throw busy()
            for (index in 0 until count) waveform[length++] = piece[index] / 32768f
        }
        return waveform.copyOf(length)
    }

    private fun busy() = ModelException("the microphone cannot be opened: close the app that uses it.")
}
