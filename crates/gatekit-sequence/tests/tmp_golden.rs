//! Temporary.
mod support;
use std::collections::BTreeMap;
use burn::tensor::*;
use gatekit_core::ModuleConfig;
use gatekit_core::sequence::Packing;
use gatekit_sequence::checkpoint::*;
use gatekit_sequence::gla::*;
use gatekit_sequence::lm::CausalLm;
use safetensors::SafeTensors;
use support::*;
fn f(v: safetensors::tensor::TensorView) -> TensorData {
    let s = v.shape().to_vec();
    match v.dtype() {
        safetensors::Dtype::F32 => TensorData::new(v.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>(), s),
        safetensors::Dtype::I64 => TensorData::new(v.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect::<Vec<_>>(), s),
        _ => TensorData::new(v.data().iter().map(|b| *b != 0).collect::<Vec<_>>(), s),
    }
}
fn check(got: &TensorData, want: &TensorData, tol: f64, what: &str) {
    let g: Vec<f32> = got.iter().collect(); let w: Vec<f32> = want.iter().collect();
    assert_eq!(g.len(), w.len(), "{what}");
    let n: f64 = w.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt();
    let e: f64 = g.iter().zip(&w).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>().sqrt();
    let bound = tol * n + 1e-6 * (w.len() as f64).sqrt();
    println!("{what}: {:.3}", e / bound);
    assert!(e <= bound, "{what}: {e} > {bound}");
}
#[test]
fn golden() {
    for device in devices() {
        let device = device.autodiff();
        for case in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gla")).unwrap() {
            let path = case.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            let bytes = std::fs::read(&path).unwrap();
            let (_, meta) = SafeTensors::read_metadata(&bytes).unwrap();
            let meta = meta.metadata().clone().unwrap();
            let json: serde_json::Value = serde_json::from_str(&meta["config"]).unwrap();
            let st = SafeTensors::deserialize(&bytes).unwrap();
            let get = |n: &str| st.tensor(n).ok().map(f);
            let params: BTreeMap<String, TensorData> = st.names().iter().filter_map(|n| n.strip_prefix("param.").map(|m| (m.to_string(), get(n).unwrap()))).collect();
            let (to, tg): (f64, f64) = (meta["tolerance_output"].parse().unwrap(), meta["tolerance_grad"].parse().unwrap());
            println!("{name}");
            if name.starts_with("gla-layer") {
                let c = config_from_json(&GatedLinearAttentionConfig::new(1), &json).unwrap();
                let layer = load_tensors(c.init(&device), params).unwrap();
                let x = Tensor::<3>::from_data(get("input.hidden_states").unwrap(), &device).require_grad();
                let packing = get("input.attention_mask").map(|m| Packing::from_mask(&Tensor::<2, Bool>::from_data(m, &device)).unwrap());
                let (y, s) = layer.forward_with_state(x.clone(), packing.as_ref(), None);
                check(&y.to_data(), &get("output.output").unwrap(), to, "output");
                check(&s.recurrent.to_data(), &get("output.final_state").unwrap(), to, "state");
                let l = (y * Tensor::from_data(get("cotangent.output").unwrap(), &device)).sum() + (s.recurrent * Tensor::from_data(get("cotangent.final_state").unwrap(), &device)).sum();
                let g = l.backward();
                for (n, v) in named_gradients(&layer, &g) { check(&v, &get(&format!("grad.param.{n}")).unwrap(), tg, &n); }
                check(&x.grad(&g).unwrap().to_data(), &get("grad.input.hidden_states").unwrap(), tg, "dx");
            } else if name.starts_with("gla-model") {
                let c = config_from_json(&GlaConfig::new(1, 1, 1), &json).unwrap();
                let m = load_tensors(c.init(&device), params).unwrap();
                let ids = Tensor::<2, Int>::from_data(get("input.input_ids").unwrap(), &device);
                let labels = Tensor::<2, Int>::from_data(get("input.labels").unwrap(), &device);
                let mask = get("input.attention_mask").map(|m| Tensor::<2, Bool>::from_data(m, &device));
                let y = m.forward(ids, mask);
                let loss = m.loss(y.clone(), labels).unwrap();
                check(&y.to_data(), &get("output.logits").unwrap(), to, "logits");
                check(&loss.to_data(), &get("output.loss").unwrap(), to, "loss");
                let l = (y * Tensor::from_data(get("cotangent.logits").unwrap(), &device)).sum() + loss * get("cotangent.loss").unwrap().iter::<f32>().next().unwrap();
                let g = l.backward();
                for (n, v) in named_gradients(&m, &g) { check(&v, &get(&format!("grad.param.{n}")).unwrap(), tg, &n); }
            }
        }
    }
}
