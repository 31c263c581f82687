//! The bank, the mixer and the attention layers.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Int, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::sequence::Boundaries;
use gatekit_sequence::mixture_of_value_embeddings::*;

use super::support::*;
use super::{noisy, parameters};

#[test]
fn the_bank_hands_out_its_rows() {
    for device in devices() {
        let bank = ValueEmbeddingBankConfig::new(5, 3, 2, 4, 16).init(&device);
        assert_eq!((bank.rows(), bank.slots(), bank.weight.dims()), (5, 3, [5, 24]));
        let ids = Tensor::<2, Int>::from_data([[4, 0, 4]], &device);
        let values_of = bank.look_up(ids.clone());
        assert_eq!(values_of.dims(), [1, 3, 3, 2, 4]);
        let rows = values(&bank.weight.val());
        assert_eq!(values(&values_of), [&rows[96..], &rows[..24], &rows[96..]].concat());
        assert_eq!(values(&bank.try_look_up(ids).unwrap()), values(&values_of));
    }
}

#[test]
fn the_bank_starts_like_a_value_projection() {
    let device = Device::flex();
    device.seed(5);
    let weight = values(&ValueEmbeddingBankConfig::new(64, 4, 2, 8, 48).init(&device).weight.val());
    let bound = (3.0f32 / 48.0).sqrt();
    assert!(weight.iter().all(|value| value.abs() <= bound));
    let variance = weight.iter().map(|value| value * value).sum::<f32>() / weight.len() as f32;
    assert!((variance * 48.0 - 1.0).abs() < 0.05, "{variance}");
}

fn mixer(standard: bool, device: &Device) -> ValueMixer {
    ValueMixerConfig::new(8, 2, 3, 4).with_gate_standard(standard).init(device)
}

#[test]
fn a_fresh_mixer_adds_all_slots() {
    for device in devices() {
        let (x, v, memory) = (
            noisy([2, 3, 8], 1, &device),
            noisy([2, 3, 2, 3], 2, &device),
            noisy([2, 3, 4, 2, 3], 3, &device),
        );
        let want = v.clone() + memory.clone().sum_dim(2).squeeze_dim::<4>(2);
        for standard in [true, false] {
            let mixer = mixer(standard, &device);
            let gates = mixer.gates(x.clone());
            assert_eq!(gates.dims(), [2, 3, 2, 4 + usize::from(standard)]);
            assert!(values(&gates).iter().all(|gate| *gate == 1.0));
            let got = mixer.forward(x.clone(), v.clone(), memory.clone());
            assert_close(&values(&got), &values(&want), 1e-6, "mixed");
        }
    }
}

#[test]
fn open_and_closed_gates_are_exact() {
    for device in devices() {
        let device = device.autodiff();
        for standard in [true, false] {
            let mut mixer = mixer(standard, &device);
            let rows = 2 * (4 + usize::from(standard));
            // Logits of +-4000 by the sign of the only channel that is not 0.
            let mut weight = vec![0.0f32; rows * 8];
            weight.iter_mut().step_by(8).for_each(|first| *first = 4000.0);
            let weight = burn::tensor::TensorData::new(weight, [rows, 8]);
            mixer.ve_gate.weight = Param::from_data(weight, &device);
            let v = noisy([1, 2, 2, 3], 2, &device).require_grad();
            let memory = noisy([1, 2, 4, 2, 3], 3, &device).require_grad();
            for (sign, gate) in [(1.0, 2.0), (-1.0, 0.0)] {
                let x = Tensor::zeros([1, 2, 7], &device);
                let x = Tensor::cat(vec![Tensor::full([1, 2, 1], sign, &device), x], 2).require_grad();
                assert!(values(&mixer.gates(x.clone())).iter().all(|got| *got == gate));
                let got = mixer.forward(x.clone(), v.clone(), memory.clone());
                let kept = v.clone() * if standard { gate } else { 1.0 };
                let want = kept + memory.clone().sum_dim(2).squeeze_dim::<4>(2) * gate;
                let error = (got.clone() - want).abs().max().into_scalar::<f32>();
                assert!(error < 2e-6, "{error}");
                let gradients = got.sum().backward();
                let of_x = values(&x.grad(&gradients).unwrap());
                assert!(of_x.iter().all(|value| value.is_finite()));
                let of_memory = values(&memory.grad(&gradients).unwrap());
                assert!(of_memory.iter().all(|value| *value == gate));
            }
        }
    }
}

#[test]
fn half_precision_mixes_in_float32() {
    for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
        // 2048 and 64 ones, one after the other, would stay 2048 in half precision.
        let mixer = ValueMixerConfig::new(8, 1, 2, 64).init(&device);
        let half = |value: f32, shape: [usize; 4]| Tensor::<4>::full(shape, value, &device).cast(DType::F16);
        let memory = half(1.0, [1, 1, 64, 2]).unsqueeze_dim::<5>(3);
        let x = noisy([1, 1, 8], 1, &device);
        let got = mixer.mix(mixer.gates(x), half(2048.0, [1, 1, 1, 2]), memory);
        assert_eq!(got.dtype(), DType::F16);
        assert_eq!(got.to_data().iter::<f32>().collect::<Vec<_>>(), [2112.0; 2]);

        let layer: MoveAttention =
            enlivened(MoveAttentionConfig::new(16, 4).with_move_slots(Some(3)).init(&device));
        let (x, memory) = (noisy([1, 6, 16], 2, &device), noisy([1, 6, 3, 4, 4], 3, &device));
        let want = layer.forward(x.clone(), Some(memory.clone()), None);
        let narrow: MoveAttention = layer.map(&mut Half);
        let got = narrow.forward(x.cast(DType::F16), Some(memory.cast(DType::F16)), None);
        assert_eq!(got.dtype(), DType::F16);
        assert_close(&values(&got), &values(&want), 5e-3, "half precision");
    }
}

/// Parameters in half precision.
struct Half;

impl ModuleMapper for Half {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(DType::F16))
    }
}

/// With its slot gates shut and its own at 1, a layer with a memory is one without.
#[test]
fn shut_slots_leave_plain_attention() {
    for device in devices() {
        let config = MoveAttentionConfig::new(16, 4).with_n_kv_head(Some(2));
        let mut mixing: MoveAttention =
            enlivened(config.clone().with_move_slots(Some(2)).with_gate_standard(false).init(&device));
        let mut plain = config.init(&device);
        assert_eq!(parameters(&mixing) - parameters(&plain), 2 * 2 * 16);
        plain.c_q = mixing.c_q.clone();
        plain.c_k = mixing.c_k.clone();
        plain.c_v = mixing.c_v.clone();
        plain.c_proj = mixing.c_proj.clone();
        // Positive inputs, so that a large negative weight shuts every gate.
        let x = noisy([1, 5, 16], 4, &device).abs() + 0.1;
        let memory = noisy([1, 5, 2, 2, 4], 5, &device);
        let want = plain.forward(x.clone(), None, None);
        let open = mixing.forward(x.clone(), Some(memory.clone()), None);
        assert_ne!(values(&open), values(&want));
        let mixer = mixing.mixer.as_mut().unwrap();
        mixer.ve_gate.weight = Param::from_tensor(Tensor::full([4, 16], -1e4, &device));
        assert_eq!(values(&mixing.forward(x, Some(memory), None)), values(&want));
    }
}

#[test]
fn a_window_counts_the_tokens_besides_oneself() {
    for device in devices() {
        let layer = |window| -> MoveAttention {
            enlivened(MoveAttentionConfig::new(8, 2).with_window_size(window).init(&device))
        };
        let x = noisy([1, 6, 8], 4, &device);
        let changed = Tensor::cat(vec![noisy([1, 1, 8], 9, &device), x.clone().narrow(1, 1, 5)], 1);
        let (before, after) =
            (layer(2).forward(x.clone(), None, None), layer(2).forward(changed, None, None));
        let rows = |y: &Tensor<3>, start, count| values(&y.clone().narrow(1, start, count));
        assert_ne!(rows(&before, 2, 1), rows(&after, 2, 1), "two tokens back are seen");
        assert_eq!(rows(&before, 3, 3), rows(&after, 3, 3), "three are not");
        let wide = layer(100).forward(x.clone(), None, None);
        assert_eq!(values(&wide), values(&layer(0).forward(x, None, None)));
    }
}

#[test]
fn packed_sequences_do_not_see_one_another() {
    for device in devices() {
        let boundaries = Boundaries::new(&[0, 1, 4, 9], 9).unwrap();
        let x = noisy([1, 9, 16], 4, &device);
        let full: MoveAttention =
            enlivened(MoveAttentionConfig::new(16, 4).with_move_slots(Some(2)).init(&device));
        let latent: MoveLatentAttention = enlivened(
            MoveLatentAttentionConfig::new(16, 4, 8, 6, 2)
                .with_move_slots(Some(2))
                .with_latent_target(LatentTarget::V)
                .init(&device),
        );
        let memory = noisy([1, 9, 2, 4, 4], 5, &device);
        let compressed = noisy([1, 9, 2, 8], 6, &device);
        let together = full.forward(x.clone(), Some(memory.clone()), Some(&boundaries));
        let (latents_together, _) = latent.forward(x.clone(), Some(compressed.clone()), Some(&boundaries));
        for pair in boundaries.cu_seqlens().windows(2) {
            let (start, count) = (pair[0], pair[1] - pair[0]);
            let x = x.clone().narrow(1, start, count);
            let alone = full.forward(x.clone(), Some(memory.clone().narrow(1, start, count)), None);
            let part = |y: &Tensor<3>| values(&y.clone().narrow(1, start, count));
            assert_close(&part(&together), &values(&alone), 1e-5, "attention");
            let (alone, _) = latent.forward(x, Some(compressed.clone().narrow(1, start, count)), None);
            assert_close(&part(&latents_together), &values(&alone), 1e-5, "latent attention");
        }
    }
}

#[test]
fn a_latent_cache_is_as_large_as_without_a_memory() {
    let device = Device::flex();
    let held = |slots: Option<usize>, target| {
        let config = MoveLatentAttentionConfig::new(16, 4, 8, 6, 2).with_latent_target(target);
        let layer = config.with_move_slots(slots).init(&device);
        let memory = slots.map(|slots| noisy([1, 5, slots, 8], 6, &device));
        let (_, cache) = layer.prefill(noisy([1, 5, 16], 4, &device), memory, layer.empty_cache(1, &device));
        use gatekit_sequence::backbone::MixerState;
        MoveCache::Latent(cache).bytes()
    };
    assert_eq!(held(Some(7), LatentTarget::Kv), 4 * 5 * (8 + 2));
    assert_eq!(held(None, LatentTarget::Kv), held(Some(7), LatentTarget::Kv));
    // Keys are made of the plain latent, which has to be kept as well.
    assert_eq!(held(Some(7), LatentTarget::V), 4 * 5 * (8 + 8 + 2));
}
