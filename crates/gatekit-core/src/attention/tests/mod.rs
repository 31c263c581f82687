mod affine;
mod gate;
mod layer;
mod masked;
mod rotary;
mod softmax;
