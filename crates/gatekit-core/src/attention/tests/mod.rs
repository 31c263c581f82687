mod affine;
mod gate;
mod layer;
mod rotary;
mod softmax;
