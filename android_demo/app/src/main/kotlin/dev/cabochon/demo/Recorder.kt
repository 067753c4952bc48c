package dev.cabochon.demo

import android.annotation.SuppressLint
import android.media.AudioFormat
import android.media.AudioRecord
import android.media.MediaRecorder
import dev.cabochon.core.ModelException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/** Records mono speech as long as it is wanted; the caller has the permission. */
class Recorder(private val sampleRate: Int, private val longest: Int) {
    @Volatile
    private var wanted = true

    /** Ends [record], which returns what was heard. */
    fun stop() {
        wanted = false
    }

    /** Samples in [-1, 1], at most [longest]. ModelException where no microphone can be had. */
    @SuppressLint("MissingPermission") // MainActivity asks before
    suspend fun record(): FloatArray = withContext(Dispatchers.IO) {
        val smallest = AudioRecord.getMinBufferSize(sampleRate, AudioFormat.CHANNEL_IN_MONO, AudioFormat.ENCODING_PCM_16BIT)
        if (smallest <= 0) throw ModelException("the microphone does not record $sampleRate Hz: try another one.")
        val microphone = AudioRecord(
            MediaRecorder.AudioSource.VOICE_RECOGNITION, sampleRate, AudioFormat.CHANNEL_IN_MONO,
            AudioFormat.ENCODING_PCM_16BIT, maxOf(smallest, sampleRate),
        )
        try {
            if (microphone.state != AudioRecord.STATE_INITIALIZED) throw busy()
            microphone.startRecording()
            if (microphone.recordingState != AudioRecord.RECORDSTATE_RECORDING) throw busy()
            read(microphone)
        } finally {
            microphone.release()
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
