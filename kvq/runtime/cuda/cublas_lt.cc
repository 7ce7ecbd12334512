#include "kvq/runtime/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <string>
#include <utility>

namespace kvq::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

std::string library_name() { return fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR); }

}  // namespace

Result<std::unique_ptr<CublasLt>> CublasLt::open(std::shared_ptr<Device> device) {
  std::unique_ptr<CublasLt> result(new CublasLt);
  result->device_ = std::move(device);
  KVQ_RETURN_IF_ERROR(result->load());
  KVQ_RETURN_IF_ERROR(
      result->check(result->functions_.create(&result->handle_), library_name().c_str()));
  KVQ_ASSIGN_OR_RETURN(result->workspace_, DeviceArray::create(kWorkspaceBytes));
  return result;
}

CublasLt::~CublasLt() {
  for (auto& [product, plan] : plans_) {
    if (plan.descriptor != nullptr) functions_.descriptor_destroy(plan.descriptor);
    for (const auto layout : {plan.weights, plan.input, plan.output}) {
      if (layout != nullptr) functions_.layout_destroy(layout);
    }
  }
  if (handle_ != nullptr) functions_.destroy(handle_);
  if (library_ != nullptr) dlclose(library_);
}

Status CublasLt::load() {
  library_ = dlopen(library_name().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) return fail("--device cuda: {}", dlerror());
  std::string missing;
  const auto find = [&](const char* symbol, auto& function) {
    void* address = dlsym(library_, symbol);
    if (address == nullptr) missing = symbol;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  find("cublasLtCreate", functions_.create);
  find("cublasLtDestroy", functions_.destroy);
  find("cublasLtMatmulDescCreate", functions_.descriptor_create);
  find("cublasLtMatmulDescDestroy", functions_.descriptor_destroy);
  find("cublasLtMatmulDescSetAttribute", functions_.descriptor_set);
  find("cublasLtMatrixLayoutCreate", functions_.layout_create);
  find("cublasLtMatrixLayoutDestroy", functions_.layout_destroy);
  find("cublasLtMatmulPreferenceCreate", functions_.preference_create);
  find("cublasLtMatmulPreferenceDestroy", functions_.preference_destroy);
  find("cublasLtMatmulPreferenceSetAttribute", functions_.preference_set);
  find("cublasLtMatmulAlgoGetHeuristic", functions_.choose);
  find("cublasLtMatmul", functions_.multiply);
  find("cublasLtGetStatusString", functions_.status_text);
  if (!missing.empty()) return fail("--device cuda: {} has no {}", library_name(), missing);
  return {};
}

Status CublasLt::check(cublasStatus_t status, const char* what) const {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return fail("cuBLASLt: {}: {}", what, functions_.status_text(status));
}

// cuBLASLt counts columns first, so a row-major [rows, width] is its [width, rows]:
// output^T [outputs, rows] = (weights^T)^T [outputs, inputs] input^T [inputs, rows].
Status CublasLt::describe(const Product& product, Plan& plan) const {
  const cudaDataType_t type = product.bfloat16 ? CUDA_R_16BF : CUDA_R_32F;
  KVQ_RETURN_IF_ERROR(check(
      functions_.descriptor_create(&plan.descriptor, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product"));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  KVQ_RETURN_IF_ERROR(check(functions_.descriptor_set(plan.descriptor, CUBLASLT_MATMUL_DESC_TRANSA,
                                                      &transposed, sizeof(transposed)),
                            "product"));
  const auto create = [&](cublasLtMatrixLayout_t& layout, cudaDataType_t of, int width, int rows) {
    return check(functions_.layout_create(&layout, of, static_cast<std::uint64_t>(width),
                                          static_cast<std::uint64_t>(rows), width),
                 "matrix");
  };
  KVQ_RETURN_IF_ERROR(create(plan.weights, type, product.inputs, product.outputs));
  KVQ_RETURN_IF_ERROR(create(plan.input, type, product.inputs, product.rows));
  return create(plan.output, CUDA_R_32F, product.outputs, product.rows);
}

Status CublasLt::choose(const Product& product, Plan& plan) const {
  cublasLtMatmulPreference_t preference = nullptr;
  KVQ_RETURN_IF_ERROR(check(functions_.preference_create(&preference), "preference"));
  const std::size_t workspace = kWorkspaceBytes;
  const auto alignment = static_cast<std::uint32_t>(product.output_alignment);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    functions_.preference_set(preference, attribute, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status =
      functions_.choose(handle_, plan.descriptor, plan.weights, plan.input, plan.output,
                        plan.output, preference, 1, &result, &found);
  functions_.preference_destroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
    return fail("cuBLASLt: no product of {} rows with a matrix of {} x {}: {}", product.rows,
                product.outputs, product.inputs, functions_.status_text(status));
  }
  plan.algorithm = result.algo;
  return {};
}

Result<const CublasLt::Plan*> CublasLt::plan(const Product& product) {
  const auto [entry, added] = plans_.try_emplace(product);
  if (!added) return &entry->second;
  Status status = describe(product, entry->second);
  if (status) status = choose(product, entry->second);
  if (status) return &entry->second;
  plans_.erase(entry);
  return tl::unexpected(std::move(status).error());
}

Status CublasLt::multiply(const Product& product, const void* weights, const void* input,
                          float* output) {
  KVQ_ASSIGN_OR_RETURN(const Plan* chosen, plan(product));
  const float one = 1;
  const float kept = product.accumulate ? 1.0F : 0.0F;
  return check(functions_.multiply(handle_, chosen->descriptor, &one, weights, chosen->weights,
                                   input, chosen->input, &kept, output, chosen->output, output,
                                   chosen->output, &chosen->algorithm, workspace_.as<void>(),
                                   kWorkspaceBytes, device_->stream()),
               "product");
}

}  // namespace kvq::cuda
