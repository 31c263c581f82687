// The ggml peer of gatekit-bench: ggml's fused CPU scans behind the worker protocol of worker.py.
//
// gla is ggml_gated_linear_attn; gated-delta-rule and kda are ggml_gated_delta_net with one gate a
// head and one a channel. Forward over a sequence, and decode: a chain of single steps in which each
// takes the state that the one before wrote. ggml has no backward pass for them.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-cpu.h"
#include "ggml.h"
#include "nlohmann/json.hpp"

using json = nlohmann::json;

namespace {

// Steps of a decode graph, and the memory their states may take.
constexpr int64_t MAX_STEPS = 16;
constexpr size_t MAX_STATE_BYTES = size_t(256) << 20;

struct Shape {
    int64_t batch, time, heads, dim;
};

// One op at one shape: its tensors and the graph that computes it.
class Case {
  public:
    Case(const std::string & op, Shape shape, bool decode, unsigned seed) : op_(op), shape_(shape) {
        if (op != "gla" && op != "gated-delta-rule" && op != "kda") {
            throw std::invalid_argument("op `" + op + "` is not one of ggml's fused scans");
        }
        if (decode) {
            shape_.time = 1;
        }
        const size_t state_bytes = sizeof(float) * shape_.batch * shape_.heads * shape_.dim * shape_.dim;
        steps_ = decode ? std::clamp<int64_t>(MAX_STATE_BYTES / state_bytes, 1, MAX_STEPS) : 1;

        const int64_t tokens = shape_.batch * shape_.time;
        const size_t sequence = sizeof(float) * tokens * shape_.heads * shape_.dim;
        const size_t memory = (6 + steps_) * sequence + (2 + steps_) * state_bytes + (size_t(4) << 20);
        context_.reset(ggml_init({memory, nullptr, false}));
        if (!context_) {
            throw std::runtime_error("ggml_init: out of memory");
        }
        build();
        fill_random(seed);
    }

    const std::string & op() const { return op_; }
    const Shape & shape() const { return shape_; }
    int64_t steps() const { return steps_; }
    ggml_cgraph * graph() const { return graph_; }

    // Puts an input of the protocol, [batch, time, heads, dim] in C order, where ggml reads it.
    void set(const std::string & name, const std::vector<float> & values) {
        ggml_tensor * target = name == "q"           ? q_
                               : name == "k"         ? k_
                               : name == "v"         ? v_
                               : name == "log_decay" ? gate_
                               : name == "beta"      ? beta_
                                                     : nullptr;
        if (!target || values.size() != size_t(ggml_nelements(target))) {
            throw std::invalid_argument("input `" + name + "` is unknown or has the wrong size");
        }
        float * to = ggml_get_data_f32(target);
        std::copy(values.begin(), values.end(), to);
        if (name == "log_decay" && op_ == "gla") {
            // This op takes the gate itself, not its logarithm.
            std::transform(to, to + values.size(), to, [](float g) { return std::exp(g); });
        }
    }

    std::vector<float> output() const {
        const float * values = ggml_get_data_f32(result_);
        return {values, values + shape_.batch * shape_.time * shape_.heads * shape_.dim};
    }

  private:
    void build() {
        const auto [batch, time, heads, dim] = shape_;
        ggml_context * c = context_.get();
        const bool additive = op_ == "gla";
        auto sequence = [&](int64_t width) {
            return additive ? ggml_new_tensor_3d(c, GGML_TYPE_F32, width, heads, batch * time)
                            : ggml_new_tensor_4d(c, GGML_TYPE_F32, width, heads, time, batch);
        };
        q_ = sequence(dim);
        k_ = sequence(dim);
        v_ = sequence(dim);
        gate_ = sequence(op_ == "gated-delta-rule" ? 1 : dim);
        beta_ = additive ? nullptr : sequence(1);
        ggml_tensor * state = additive ? ggml_new_tensor_2d(c, GGML_TYPE_F32, dim * dim * heads, batch)
                                       : ggml_new_tensor_4d(c, GGML_TYPE_F32, dim, dim, heads, batch);
        std::memset(state->data, 0, ggml_nbytes(state));

        graph_ = ggml_new_graph_custom(c, 4 * MAX_STEPS, false);
        const size_t outputs = sizeof(float) * dim * heads * time * batch;
        for (int64_t step = 0; step < steps_; step++) {
            if (additive) {
                result_ = ggml_gated_linear_attn(c, k_, v_, q_, gate_, state, 1.0f / std::sqrt(float(dim)));
                state = ggml_view_2d(c, result_, dim * dim * heads, batch, sizeof(float) * dim * dim * heads, outputs);
            } else {
                result_ = ggml_gated_delta_net(c, q_, k_, v_, gate_, beta_, state, 1);
                const size_t row = sizeof(float) * dim;
                state = ggml_view_4d(c, result_, dim, dim, heads, batch, row, row * dim, row * dim * heads, outputs);
            }
            ggml_build_forward_expand(graph_, result_);
        }
    }

    // The distributions of the report program: unit queries and keys, mild decays.
    void fill_random(unsigned seed) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        std::uniform_real_distribution<float> uniform;
        const auto draw = [&](ggml_tensor * tensor, auto && value) {
            std::vector<float> values(ggml_nelements(tensor));
            std::generate(values.begin(), values.end(), value);
            return values;
        };
        const auto gaussian = [&] { return normal(random); };
        const float normalizer = op_ == "gated-delta-rule" ? 1.0f : 16.0f;
        for (const char * name : {"q", "k"}) {
            auto values = draw(q_, gaussian);
            for (size_t row = 0; row < values.size(); row += shape_.dim) {
                float square = 0.0f;
                for (int64_t i = 0; i < shape_.dim; i++) {
                    square += values[row + i] * values[row + i];
                }
                for (int64_t i = 0; i < shape_.dim; i++) {
                    values[row + i] /= std::sqrt(square);
                }
            }
            set(name, values);
        }
        set("v", draw(v_, gaussian));
        set("log_decay", draw(gate_, [&] { return -std::log1p(std::exp(-normal(random))) / normalizer; }));
        if (beta_) {
            set("beta", draw(beta_, [&] { return uniform(random); }));
        }
    }

    struct Free {
        void operator()(ggml_context * context) const { ggml_free(context); }
    };

    std::string op_;
    Shape shape_;
    int64_t steps_ = 1;
    std::unique_ptr<ggml_context, Free> context_;
    ggml_tensor *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *gate_ = nullptr, *beta_ = nullptr, *result_ = nullptr;
    ggml_cgraph * graph_ = nullptr;
};

// Computes graphs on a fixed number of threads.
class Runner {
  public:
    explicit Runner(int threads) : threads_(threads) {
        ggml_threadpool_params params = ggml_threadpool_params_default(threads);
        pool_ = ggml_threadpool_new(&params);
    }
    ~Runner() { ggml_threadpool_free(pool_); }
    Runner(const Runner &) = delete;
    Runner & operator=(const Runner &) = delete;

    int threads() const { return threads_; }

    // Seconds of one execution, the mean of `repeats`.
    double seconds(const Case & work, int64_t repeats) {
        ggml_cplan plan = ggml_graph_plan(work.graph(), threads_, pool_);
        buffer_.resize(plan.work_size);
        plan.work_data = buffer_.data();
        const int64_t rounds = std::max<int64_t>((repeats + work.steps() - 1) / work.steps(), 1);
        ggml_threadpool_resume(pool_);
        const auto start = std::chrono::steady_clock::now();
        for (int64_t round = 0; round < rounds; round++) {
            if (ggml_graph_compute(work.graph(), &plan) != GGML_STATUS_SUCCESS) {
                throw std::runtime_error("ggml_graph_compute failed");
            }
        }
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        // Idle workers must not spin while the others are measured.
        ggml_threadpool_pause(pool_);
        return elapsed.count() / double(rounds * work.steps());
    }

  private:
    int threads_;
    ggml_threadpool * pool_;
    std::vector<uint8_t> buffer_;
};

// Keeps the last case and its threads: a report asks for the same one again and again.
class Worker {
  public:
    json answer(const json & request) {
        const std::string op = request.at("op"), pass = request.at("pass");
        const bool decode = pass == "decode";
        if (!decode && pass != "forward") {
            throw std::invalid_argument("ggml has no pass `" + pass + "`");
        }
        if (request.at("dtype") != "f32") {
            throw std::invalid_argument("ggml's scans are float32");
        }
        const auto sizes = request.at("shape").get<std::vector<int64_t>>();
        if (sizes.size() != 5 || sizes[3] != sizes[4]) {
            throw std::invalid_argument("shape: need [batch, time, heads, key_dim, value_dim] with equal head sizes");
        }
        const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3]};
        const int threads = request.at("threads");
        if (!runner_ || runner_->threads() != threads) {
            runner_.reset();
            runner_ = std::make_unique<Runner>(threads);
        }
        if (request.at("do") == "run") {
            case_.reset();
            Case work(op, shape, decode, 0);
            for (const auto & [name, values] : request.at("inputs").items()) {
                work.set(name, values.get<std::vector<float>>());
            }
            runner_->seconds(work, 1);
            return {{"output", work.output()}};
        }
        const std::string key = op + pass + request.at("shape").dump();
        if (!case_ || key != key_) {
            case_.reset();
            case_ = std::make_unique<Case>(op, shape, decode, request.at("seed").get<unsigned>());
            key_ = key;
            runner_->seconds(*case_, 1);
        }
        return {{"seconds", runner_->seconds(*case_, request.at("repeats"))}};
    }

  private:
    std::unique_ptr<Runner> runner_;
    std::unique_ptr<Case> case_;
    std::string key_;
};

}  // namespace

int main() {
    ggml_cpu_init();
    const json cases = json::array({
        {{"op", "gla"}, {"form", "fused per token"}, {"passes", {"forward", "decode"}}},
        {{"op", "gated-delta-rule"}, {"form", "fused per token"}, {"passes", {"forward", "decode"}}},
        {{"op", "kda"}, {"form", "fused per token"}, {"passes", {"forward", "decode"}}},
    });
    const json ready = {{"version", ggml_version()}, {"device", "cpu"}, {"dtypes", {"f32"}}, {"cases", cases}};
    std::cout << json{{"ready", ready}} << std::endl;
    Worker worker;
    for (std::string line; std::getline(std::cin, line);) {
        json reply;
        try {
            reply = worker.answer(json::parse(line));
        } catch (const std::exception & error) {
            reply = {{"error", error.what()}};
        }
        std::cout << reply << std::endl;
    }
    return 0;
}
