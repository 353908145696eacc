// What marks a function that runs on either device.
#pragma once

#ifdef __CUDACC__
#define DDFAST_HOST_DEVICE __host__ __device__
#else
#define DDFAST_HOST_DEVICE
#endif
