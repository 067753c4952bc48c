// llama.cpp at the other end of a pipe: commands come as lines, answers go as lines of JSON. See workers.py.
//
//   llama_cpp_worker MODEL.gguf PROJECTOR.gguf THREADS CONTEXT INSTRUCTION
//
//   prefill N      forget everything, run N random tokens          {"seconds": …}
//   decode N       run N random tokens one by one, and choose      {"each": [seconds, …]}
//   hear FILE N    forget everything, hear float32 samples, answer with N tokens
//                                                                  {"seconds": …, "positions": …, "decode": …}
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"
#include "mtmd-helper.h"
#include "mtmd.h"

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void fail(const std::string & sentence) {
    std::fprintf(stderr, "llama_cpp_worker: %s\n", sentence.c_str());
    std::exit(1);
}

static void log_errors(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

struct Worker {
    llama_model * model;
    llama_context * context;
    mtmd_context * hearing;
    const llama_vocab * vocabulary;
    std::string instruction;
    std::mt19937 generator{0};

    std::vector<llama_token> random_tokens(int count) {
        std::uniform_int_distribution<llama_token> any(1000, llama_vocab_n_tokens(vocabulary) - 1);
        std::vector<llama_token> tokens(count);
        for (auto & token : tokens) token = any(generator);
        return tokens;
    }

    void run(std::vector<llama_token> tokens) {
        const int batch = llama_n_batch(context);
        for (size_t start = 0; start < tokens.size(); start += batch) {
            const int count = std::min<size_t>(batch, tokens.size() - start);
            if (llama_decode(context, llama_batch_get_one(tokens.data() + start, count))) fail("a run failed");
        }
        llama_synchronize(context);
    }

    llama_token choose() {
        const float * logits = llama_get_logits_ith(context, -1);
        return std::max_element(logits, logits + llama_vocab_n_tokens(vocabulary)) - logits;
    }

    void forget() { llama_memory_clear(llama_get_memory(context), true); }

    void prefill(int count) {
        forget();
        auto tokens = random_tokens(count);
        const double start = now();
        run(tokens);
        std::cout << "{\"seconds\": " << now() - start << "}" << std::endl;
    }

    void decode(int count) {
        std::cout << "{\"each\": [";
        for (int index = 0; index < count; ++index) {
            auto tokens = random_tokens(1);
            const double start = now();
            run(tokens);
            choose();
            std::cout << (index ? ", " : "") << now() - start;
        }
        std::cout << "]}" << std::endl;
    }

    void hear(const std::string & path, int count) {
        std::ifstream file(path, std::ios::binary);
        std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        forget();
        const double start = now();
        mtmd_bitmap * sound =
            mtmd_bitmap_init_from_audio(bytes.size() / sizeof(float), reinterpret_cast<const float *>(bytes.data()));
        const std::string prompt =
            "<|turn>user\n" + instruction + mtmd_get_marker(hearing) + "<turn|>\n<|turn>model\n";
        mtmd_input_text text{};
        text.text = prompt.c_str();
        text.text_len = prompt.size();
        text.add_special = true;
        text.parse_special = true;
        mtmd_input_chunks * chunks = mtmd_input_chunks_init();
        const mtmd_bitmap * sounds[] = {sound};
        if (mtmd_tokenize(hearing, chunks, &text, sounds, 1)) fail("the prompt cannot be tokenized");
        llama_pos position = 0;
        if (mtmd_helper_eval_chunks(hearing, context, chunks, 0, 0, llama_n_batch(context), true, &position))
            fail("the prompt cannot be run");
        const double heard = now();
        for (int index = 0; index + 1 < count; ++index) run({choose()});
        choose();
        const double end = now();
        std::cout << "{\"seconds\": " << end - start << ", \"positions\": " << position
                  << ", \"decode\": " << end - heard << "}" << std::endl;
        mtmd_input_chunks_free(chunks);
        mtmd_bitmap_free(sound);
    }
};

int main(int count, char ** values) {
    if (count != 6) fail("expected MODEL PROJECTOR THREADS CONTEXT INSTRUCTION");
    llama_log_set(log_errors, nullptr);
    mtmd_helper_log_set(log_errors, nullptr);
    const int threads = std::atoi(values[3]);
    const double start = now();
    ggml_backend_load_all();
    llama_backend_init();
    // Per-layer embeddings are read when a token asks for them, all else is loaded and repacked: its fastest and
    // smallest way to run Gemma 4.
    auto model_settings = llama_model_default_params();
    model_settings.load_mode = llama_load_mode_from_str("none");
    model_settings.lazy_mode = LLAMA_LAZY_MODE_ON;
    Worker worker{};
    worker.model = llama_model_load_from_file(values[1], model_settings);
    if (!worker.model) fail("the model cannot be loaded");
    worker.vocabulary = llama_model_get_vocab(worker.model);
    auto settings = llama_context_default_params();
    settings.n_ctx = std::atoi(values[4]);
    settings.n_batch = 2048;
    settings.n_ubatch = 512;
    settings.n_threads = settings.n_threads_batch = threads;
    settings.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    settings.swa_full = false;
    worker.context = llama_init_from_model(worker.model, settings);
    if (!worker.context) fail("there is no context");
    const double loaded = now();
    auto hearing_settings = mtmd_context_params_default();
    hearing_settings.use_gpu = false;
    hearing_settings.n_threads = threads;
    hearing_settings.warmup = false;
    worker.hearing = mtmd_init_from_file(values[2], worker.model, hearing_settings);
    if (!worker.hearing) fail("the projector cannot be loaded");
    worker.instruction = values[5];
    std::cout << "{\"load_seconds\": " << loaded - start << "}" << std::endl;
    std::string line;
    while (std::getline(std::cin, line)) {
        std::istringstream words(line);
        std::string command, path;
        int number = 0;
        words >> command;
        if (command == "hear") words >> path;
        words >> number;
        if (command == "prefill") worker.prefill(number);
        else if (command == "decode") worker.decode(number);
        else if (command == "hear") worker.hear(path, number);
        else fail("unknown command " + command);
    }
    return 0;
}
