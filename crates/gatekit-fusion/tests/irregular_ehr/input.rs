//! Configurations, stays and notes that are refused.

use burn::tensor::Tensor;
use gatekit_core::{InputError, ModuleConfig};
use gatekit_fusion::irregular_ehr::{
    BagOfWordsConfig, EhrNetwork, EhrTrainer, EhrTrainingConfig, IrregularEhrConfig, Note, NoteEncoder, Stay,
    StayLoader, Task,
};

use crate::{devices, loader, small, stay, values, words};

#[test]
fn configurations_that_make_no_model_are_refused() {
    let device = devices()[0].clone();
    let refused = |config: IrregularEhrConfig| config.try_init(&device).expect_err("refused").field;
    for (config, field) in [
        (small().with_embed_time(9), "embed_time"),
        (small().with_embed_time(1).with_time_heads(1), "embed_time"),
        (small().with_heads(3), "d_model"),
        (small().with_grid(0), "grid"),
        (small().with_d_in(0), "d_in"),
        (small().with_time_heads(0), "time_heads"),
        (small().with_cross_layers(0), "cross_layers"),
        (small().with_note_dim(0), "note_dim"),
        (small().with_classes(Some(3)), "classes"),
        (small().with_task(Task::Multilabel).with_classes(Some(0)), "classes"),
        (small().with_hours_per_step(0.0), "hours_per_step"),
        (small().with_fill(f64::NAN), "fill"),
        (small().with_dropout(1.0), "dropout"),
    ] {
        assert_eq!(refused(config), field);
    }
    assert_eq!(IrregularEhrConfig::new().with_task(Task::Multilabel).num_classes(), 25);
    assert_eq!(StayLoader::new(&small().with_grid(0)).unwrap_err().field, "grid");
    assert_eq!(loader(&small()).with_last_notes(0).unwrap_err().field, "last_notes");
    for (vocabulary, width, field) in
        [(vec![], 4, "vocabulary"), (vec!["a", "a"], 4, "vocabulary"), (vec!["a"], 0, "note_dim")]
    {
        let vocabulary = vocabulary.into_iter().map(String::from).collect();
        assert_eq!(BagOfWordsConfig::new(vocabulary, width).try_init(&device).unwrap_err().field, field);
    }
    let recipe = EhrTrainingConfig::new;
    for (config, field) in [
        (recipe().with_epochs(0), "epochs"),
        (recipe().with_batch_size(0), "batch_size"),
        (recipe().with_accumulation(0), "accumulation"),
        (recipe().with_learning_rate(0.0), "learning_rate"),
        (recipe().with_note_learning_rate(f64::NAN), "note_learning_rate"),
        (recipe().with_threshold(1.5), "threshold"),
    ] {
        let network = EhrNetwork { encoder: words(&device), model: small().init(&device) };
        let error = EhrTrainer::new(network, loader(&small()), config, &device).err().expect("refused");
        assert_eq!(error.field, field);
    }
}

#[test]
fn stays_that_cannot_be_used_are_named() {
    let device = devices()[0].clone();
    let refused = |change: fn(&mut Stay)| -> InputError {
        let (first, mut second) = (stay(0, 1.0), stay(1, 1.0));
        change(&mut second);
        loader(&small()).batch(&[&first, &second], &words(&device), &device).expect_err("refused")
    };
    let changes: [(fn(&mut Stay), &str); 10] = [
        (|stay| stay.hours[1] = -0.5, "hours"),
        (|stay| stay.hours[1] = f64::NAN, "hours"),
        (|stay| stay.hours[1] = 6.5, "hours"),
        (|stay| stay.values[2] = f32::NAN, "values"),
        (|stay| stay.values[2] = f32::INFINITY, "values"),
        (|stay| stay.values.truncate(4), "values"),
        (|stay| stay.mask.truncate(4), "mask"),
        (|stay| stay.notes[0].hour = -1.0, "notes"),
        (|stay| stay.notes[0].hour = f64::NAN, "notes"),
        (
            |stay| {
                stay.mask.fill(false);
                stay.notes.clear();
            },
            "stays",
        ),
    ];
    for (change, field) in changes {
        let error = refused(change);
        assert_eq!(error.field, field);
        assert!(error.got.contains("stay 1"), "{error}");
    }
    let labels = |labels: Vec<u8>| {
        let stay = Stay { labels, ..stay(0, 1.0) };
        loader(&small()).labels(&[&stay], &device).expect_err("refused").field
    };
    assert_eq!([labels(vec![]), labels(vec![0, 1]), labels(vec![2])], ["labels"; 3]);
}

#[test]
fn a_batch_needs_a_row_and_notes_of_its_width() {
    let device = devices()[0].clone();
    let encoder = words(&device);
    let notes_alone = Stay { hours: vec![], values: vec![], mask: vec![], ..stay(0, 1.0) };
    for stays in [vec![], vec![&notes_alone]] {
        assert_eq!(loader(&small()).batch(&stays, &encoder, &device).unwrap_err().field, "stays");
    }
    let wider = small().with_note_dim(5);
    let error = loader(&wider).batch(&[&stay(0, 1.0)], &encoder, &device).unwrap_err();
    assert_eq!(error.field, "encoder");
}

#[test]
fn values_that_were_not_measured_are_zeroed_and_hours_become_times() {
    for device in devices() {
        let (mut short, long) = (stay(0, 2.0), stay(3, -1.0));
        short.hours.truncate(2);
        short.values.truncate(4);
        short.mask.truncate(4);
        short.notes.clear();
        let batch = loader(&small()).batch(&[&short, &long], &words(&device), &device).expect("stays");
        let stored = [0.1, 0.0, 2.0, 0.3, 0.0, 0.0, 0.1, 0.0, -1.0, 0.3, 0.0, -1.0];
        crate::assert_close(&values(batch.values), &stored, 1e-6);
        let times = [0.5 / 6.0, 2.0 / 6.0, 0.0, 0.8 / 6.0, 2.3 / 6.0, 4.5 / 6.0];
        crate::assert_close(&values(batch.times), &times, 1e-6);
        let seen: Vec<bool> = batch.note_mask.into_data().iter::<bool>().collect();
        assert_eq!(seen, [false, false, true, true]);
        assert_eq!(values(batch.notes)[..8], [0.0; 8]);
        assert_eq!(batch.regular.dims(), [2, 6, 4]);
    }
}

#[test]
fn the_last_notes_are_read() {
    let device = devices()[0].clone();
    let mut stay = stay(0, 1.0);
    let note = |hour: f64, text: &str| Note { hour, text: text.into() };
    stay.notes = vec![note(5.0, "grave"), note(0.5, "calm"), note(4.0, "worse")];
    let loader = loader(&small()).with_last_notes(2).expect("a number");
    let encoder = words(&device);
    let batch = loader.batch(&[&stay], &encoder, &device).expect("a stay");
    let read = values(encoder.encode(&["worse", "grave"]).expect("words"));
    assert_eq!(values(batch.notes), read);
    crate::assert_close(&values(batch.note_times), &[4.0 / 6.0, 5.0 / 6.0], 1e-6);
}

#[test]
fn a_bag_of_words_is_the_mean_of_those_it_knows() {
    for device in devices() {
        let encoder = words(&device);
        let table = values(encoder.words.weight.val());
        let got = values(encoder.encode(&["Calm, worse; calm!", "", "unknown"]).expect("texts"));
        let mean: Vec<f64> = (0..4).map(|i| (2.0 * table[i] + table[8 + i]) / 3.0).collect();
        crate::assert_close(&got[..4], &mean, 1e-6);
        assert_eq!(got[4..], [0.0; 8]);
        assert_eq!(encoder.encode(&[]).expect("nothing").dims(), [0, 4]);
        let nothing: Tensor<2> = encoder.encode(&["nothing"]).expect("a text");
        assert_eq!(values(nothing), [0.0; 4]);
    }
}
