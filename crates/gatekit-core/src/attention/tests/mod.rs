mod affine;
mod channel_masked;
mod gate;
mod layer;
mod masked;
mod rotary;
mod softmax;
