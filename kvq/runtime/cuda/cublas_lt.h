// Matrix products by cuBLASLt, which is loaded when it is first needed: a command that runs on the
// CPU needs no CUDA library.
#pragma once

#include <cublasLt.h>

#include <map>
#include <memory>

#include "kvq/base/status.h"
#include "kvq/cache/cuda/device.h"

namespace kvq::cuda {

// output [rows, outputs] = input [rows, inputs] weights^T (+ output), row-major, summed in float32.
struct Product {
  bool bfloat16 = false;  // weights and input; else float32, without TF32
  int rows = 0;
  int inputs = 0;
  int outputs = 0;
  bool accumulate = false;
  int output_alignment = 256;  // bytes, a power of two

  auto operator<=>(const Product&) const =
      default;  // NOLINT(modernize-use-nullptr): not written here
};

class CublasLt {
 public:
  static Result<std::unique_ptr<CublasLt>> open(std::shared_ptr<Device> device);
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;
  ~CublasLt();

  //   weights  [outputs, inputs]
  Status multiply(const Product& product, const void* weights, const void* input, float* output);

 private:
  // The functions that are used, of the loaded library.
  struct Functions {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmulDescCreate) descriptor_create;
    decltype(&cublasLtMatmulDescDestroy) descriptor_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) descriptor_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
    decltype(&cublasLtMatmul) multiply;
    decltype(&cublasLtGetStatusString) status_text;
  };
  // What a product of one shape needs.
  struct Plan {
    cublasLtMatmulDesc_t descriptor = nullptr;
    cublasLtMatrixLayout_t weights = nullptr;
    cublasLtMatrixLayout_t input = nullptr;
    cublasLtMatrixLayout_t output = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
  };

  CublasLt() = default;
  Status load();
  Result<const Plan*> plan(const Product& product);
  Status describe(const Product& product, Plan& plan) const;
  Status choose(const Product& product, Plan& plan) const;
  Status check(cublasStatus_t status, const char* what) const;

  std::shared_ptr<Device> device_;
  void* library_ = nullptr;
  Functions functions_{};
  cublasLtHandle_t handle_ = nullptr;
  DeviceArray workspace_;
  std::map<Product, Plan> plans_;
};

}  // namespace kvq::cuda
