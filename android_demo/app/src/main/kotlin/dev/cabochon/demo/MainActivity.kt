package dev.cabochon.demo

import android.Manifest
import android.annotation.SuppressLint
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Bundle
import android.os.Build
import android.view.MotionEvent
import android.view.View
import android.view.WindowManager
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.Spinner
import android.widget.TextView
import dev.cabochon.core.Activity as SessionActivity
import dev.cabochon.core.DemoSession
import dev.cabochon.core.ScreenState
import dev.cabochon.core.Statistics
import java.util.Locale
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/** The one screen: shows the state of [DemoSession] and passes on what is touched. */
class MainActivity : android.app.Activity() {
    private val session: DemoSession get() = (application as DemoApplication).session
    private val store: ModelStore get() = (application as DemoApplication).store
    private var screen: CoroutineScope? = null
    private var shownLanguages: List<String> = emptyList()

    /** Somebody wants another model than the one that is there. */
    private var showsModels = false

    override fun onCreate(savedState: Bundle?) {
        super.onCreate(savedState)
        setContentView(R.layout.main)
        showsModels = savedState?.getBoolean(SHOWS_MODELS) ?: false
        button(R.id.swap).setOnClickListener { session.swapLanguages() }
        button(R.id.cancel).setOnClickListener { session.cancel() }
        button(R.id.model_from_app).setOnClickListener {
            showsModels = false
            session.install(store::openAsset)
        }
        button(R.id.model_from_url).setOnClickListener {
            askForNotifications()
            download(address().text.toString())
        }
        button(R.id.other_model).setOnClickListener {
            showsModels = !showsModels
            show(session.state.value)
        }
        button(R.id.model_from_folder).setOnClickListener {
            startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), CHOOSE_FOLDER)
        }
        hear(R.id.source) { session.chooseSource(it) }
        hear(R.id.target) { session.chooseTarget(it) }
        listenToTalkButton()
    }

    override fun onStart() {
        super.onStart()
        screen = CoroutineScope(Job() + mainDispatcher).also { it.launch { session.state.collect { state -> show(state) } } }
    }

    override fun onStop() {
        screen?.cancel()
        screen = null
        // Nobody holds the button of a screen that is gone; turning the phone ends the recording, too, and translates it.
        session.release()
        super.onStop()
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putBoolean(SHOWS_MODELS, showsModels)
    }

    override fun onRequestPermissionsResult(request: Int, permissions: Array<out String>, results: IntArray) {
        if (request == ASK_FOR_MICROPHONE && results.firstOrNull() == PackageManager.PERMISSION_DENIED) {
            session.say(getString(R.string.microphone_denied))
        }
    }

    @Deprecated("The result of a file picker, as every version of Android has it")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val tree = data?.data ?: return
        if (request != CHOOSE_FOLDER || result != RESULT_OK) return
        showsModels = false
        session.install(store.treeOpener(tree))
    }

    @SuppressLint("ClickableViewAccessibility") // a click, which is what TalkBack sends, starts and stops
    private fun listenToTalkButton() {
        val talk = button(R.id.talk)
        talk.setOnTouchListener { _, event ->
            when (event.actionMasked) {
                MotionEvent.ACTION_DOWN -> talk()
                MotionEvent.ACTION_UP, MotionEvent.ACTION_CANCEL -> session.release()
            }
            talk.isPressed = event.actionMasked == MotionEvent.ACTION_DOWN || event.actionMasked == MotionEvent.ACTION_MOVE
            true
        }
        talk.setOnClickListener { if (session.state.value.activity == SessionActivity.RECORDING) session.release() else talk() }
    }

    private fun talk() {
        if (checkSelfPermission(Manifest.permission.RECORD_AUDIO) == PackageManager.PERMISSION_GRANTED) {
            session.talk()
        } else {
            requestPermissions(arrayOf(Manifest.permission.RECORD_AUDIO), ASK_FOR_MICROPHONE)
        }
    }

    private fun download(address: String) {
        showsModels = false
        DownloadService.start(this, address)
    }

    /** Without it a download goes on all the same, and nobody sees how far it is. */
    private fun askForNotifications() {
        if (Build.VERSION.SDK_INT < 33 || checkSelfPermission(POST_NOTIFICATIONS) == PackageManager.PERMISSION_GRANTED) return
        requestPermissions(arrayOf(POST_NOTIFICATIONS), ASK_FOR_NOTIFICATIONS)
    }

    private fun show(state: ScreenState) {
        val isIdle = state.activity == SessionActivity.IDLE
        showLanguages(state)
        text(R.id.transcript).text = state.transcript
        text(R.id.translation).text = state.translation
        text(R.id.status).text = state.status
        text(R.id.figures).text = state.statistics?.let { describe(it, state.memoryMegabytes) } ?: ""
        show(R.id.models, isIdle && (showsModels || !state.isModelReady))
        show(R.id.model_from_app, store.hasAssets)
        show(R.id.other_model, isIdle && state.isModelReady)
        val talk = button(R.id.talk)
        talk.isEnabled = state.isModelReady && (isIdle || state.activity == SessionActivity.RECORDING)
        if (!talk.isEnabled) talk.isPressed = false // it hears of no finger any more
        talk.setText(if (state.activity == SessionActivity.RECORDING) R.string.talking else R.string.talk)
        show(R.id.cancel, !isIdle)
        val keepOn = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
        val isSpeaking = state.activity == SessionActivity.RECORDING || state.activity == SessionActivity.TRANSLATING
        if (isSpeaking) window.addFlags(keepOn) else window.clearFlags(keepOn)
        // An earlier process ended while it downloaded; the service takes the address out of the state.
        if (isIdle) state.unfinishedAddress?.let(::download)
    }

    private fun show(id: Int, isShown: Boolean) {
        (findViewById(id) as View).visibility = if (isShown) View.VISIBLE else View.GONE
    }

    private fun showLanguages(state: ScreenState) {
        val spinners = listOf(R.id.source to state.source, R.id.target to state.target)
        for ((id, chosen) in spinners) {
            val spinner = spinner(id)
            if (state.languages != shownLanguages) {
                spinner.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, state.languages)
            }
            val place = state.languages.indexOf(chosen)
            if (place >= 0 && spinner.selectedItemPosition != place) spinner.setSelection(place)
            spinner.isEnabled = state.activity == SessionActivity.IDLE && state.isModelReady
        }
        shownLanguages = state.languages
        button(R.id.swap).isEnabled = state.activity == SessionActivity.IDLE && state.isModelReady
    }

    private fun describe(statistics: Statistics, megabytes: Long?): String = String.format(
        Locale.ROOT, "%.1f s of speech · heard in %.1f s · %d positions in %.1f s · %.1f tokens/s%s",
        statistics.audioSeconds, statistics.encodeSeconds, statistics.promptPositions, statistics.prefillSeconds,
        statistics.tokensPerSecond, if (megabytes == null) "" else " · $megabytes MB",
    )

    private fun hear(id: Int, choose: (String) -> Unit) {
        spinner(id).onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>, view: View?, position: Int, row: Long) =
                choose(parent.getItemAtPosition(position) as String)

            override fun onNothingSelected(parent: AdapterView<*>) = Unit
        }
    }

    // Android 6 returns a View, later ones whatever is expected: a cast fits both.
    private fun button(id: Int): Button = findViewById(id) as Button

    private fun text(id: Int): TextView = findViewById(id) as TextView

    private fun spinner(id: Int): Spinner = findViewById(id) as Spinner

    private fun address(): EditText = findViewById(R.id.address) as EditText

    private companion object {
        const val ASK_FOR_MICROPHONE = 1
        const val CHOOSE_FOLDER = 2
        const val ASK_FOR_NOTIFICATIONS = 3
        const val SHOWS_MODELS = "shows_models"

        /** Manifest.permission has it from Android 13 on. */
        const val POST_NOTIFICATIONS = "android.permission.POST_NOTIFICATIONS"
    }
}
