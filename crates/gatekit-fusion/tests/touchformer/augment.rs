//! Sensors that fail.

use burn::tensor::Tensor;
use gatekit_core::cross_modal::ModalityMask;
use gatekit_fusion::touchformer::{ModalityDropout, SensorNoise, WhiteNoise};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{devices, mask, values, waves};

fn random() -> StdRng {
    StdRng::seed_from_u64(7)
}

#[test]
fn dropout_takes_one_sensor_and_never_the_last() {
    for device in devices() {
        let batch = 400;
        // The second sensor is missing in every second instance.
        let removed: Vec<Vec<bool>> = (0..batch).map(|i| vec![false, i % 2 == 0]).collect();
        let before = ModalityMask::full(batch, &[2, 3], &device).without(&removed).expect("one is left");
        let after = ModalityDropout::new()
            .with_probability(0.5)
            .apply(&before, &mut random())
            .expect("a probability");
        let mut taken = 0;
        for i in 0..batch {
            let count = |mask: &ModalityMask| (0..2).filter(|&m| mask.lengths(m)[i] > 0).count();
            let (was, is) = (count(&before), count(&after));
            assert!(is >= 1 && (was == 1 || was - is <= 1) && (was > 1 || is == was));
            taken += was - is;
        }
        assert!((70..130).contains(&taken), "{taken} of 200 that can lose one");
        let same = ModalityDropout::new()
            .with_probability(0.0)
            .apply(&before, &mut random())
            .expect("a probability");
        assert_eq!(same.lengths(1), before.lengths(1));
    }
}

#[test]
fn noise_takes_the_place_of_one_present_sensor() {
    for device in devices() {
        device.seed(3);
        let batch = 30;
        let removed: Vec<Vec<bool>> = (0..batch).map(|i| vec![i == 0, false]).collect();
        let mask = ModalityMask::full(batch, &[40, 20], &device).without(&removed).expect("one is left");
        let x = vec![waves([batch, 40, 5], 0.0, &device), waves([batch, 20, 5], 1.0, &device)];
        let noise = SensorNoise::new().with_probability(1.0);
        let (noisy, struck) = noise.apply(x.clone(), &mask, &mut random()).expect("a configuration");
        assert_eq!(struck[0], Some(1), "the absent sensor is not struck");
        for (i, sensor) in struck.iter().enumerate() {
            for m in 0..2 {
                let row = |x: &Tensor<3>| values(x.clone().narrow(0, i, 1));
                let (before, after) = (row(&x[m]), row(&noisy[m]));
                if *sensor == Some(m) {
                    let square: f64 = after.iter().map(|x| x * x).sum::<f64>() / after.len() as f64;
                    assert!((4.0..12.0).contains(&square.sqrt()), "{}", square.sqrt());
                } else {
                    assert_eq!(before, after);
                }
            }
        }
        let (_, none) =
            noise.clone().with_probability(0.0).apply(x, &mask, &mut random()).expect("a configuration");
        assert!(none.iter().all(Option::is_none));
    }
}

#[test]
fn white_noise_has_the_power_that_was_asked_for() {
    for device in devices() {
        device.seed(4);
        let rows: [&[bool]; 2] = [&[true; 300], &[true; 300]];
        let half: Vec<bool> = (0..300).map(|t| t < 150).collect();
        let steps = vec![mask(&rows, &device), mask(&[&half, &half], &device)];
        let mask =
            ModalityMask::new(mask(&[&[true, true], &[true, true]], &device), steps).expect("well formed");
        let x = vec![waves([2, 300, 8], 0.0, &device), waves([2, 300, 8], 1.0, &device) * 3.0];
        for snr in [5.0, 20.0] {
            let noisy = WhiteNoise::new().with_snr_db(snr).apply(x.clone(), &mask).expect("a ratio");
            for (m, (noisy, x)) in noisy.into_iter().zip(&x).enumerate() {
                let valid = if m == 0 { 300 } else { 150 };
                let part = |x: Tensor<3>| x.narrow(1, 0, valid).narrow(0, 1, 1);
                let power = |x: Tensor<3>| values(x.square().mean())[0];
                let signal = power(part(x.clone()));
                let ratio = 10.0 * (signal / power(part(noisy.clone()) - part(x.clone()))).log10();
                assert!((ratio - snr).abs() < 0.7, "sensor {m}: {ratio} dB instead of {snr}");
                if m == 1 {
                    assert!(values(noisy.narrow(1, valid, 150)).iter().all(|value| *value == 0.0));
                }
            }
        }
    }
}
