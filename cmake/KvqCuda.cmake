# kvq_find_cuda(RESULT): sets RESULT to whether a CUDA compiler is found that is new enough: sm_90a
# and C++20 need CUDA 12. Says which one, or why there is none.
include(CheckLanguage)

function(kvq_find_cuda result)
  set(${result} OFF PARENT_SCOPE)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    return()
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(NOT text MATCHES "release ([0-9.]+)" OR CMAKE_MATCH_1 VERSION_LESS 12)
    message(STATUS "Left aside: ${CMAKE_CUDA_COMPILER} is of CUDA ${CMAKE_MATCH_1}, expected 12 or newer")
    return()
  endif()
  message(STATUS "Found CUDA ${CMAKE_MATCH_1}: ${CMAKE_CUDA_COMPILER}")
  set(${result} ON PARENT_SCOPE)
endfunction()

# kvq_cuda_library(STAGE SOURCES file... USES target... [CUDA_OPTIONS option...])
#   The device code of a stage: library kvq_STAGE_cuda, installed as kvq::STAGE_cuda.
function(kvq_cuda_library stage)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;USES;CUDA_OPTIONS")
  set(target kvq_${stage}_cuda)
  add_library(${target} STATIC ${arg_SOURCES})
  add_library(kvq::${stage}_cuda ALIAS ${target})
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Static EXPORT_NAME ${stage}_cuda)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Werror=return-type>
    "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;${arg_CUDA_OPTIONS}>")
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  install(TARGETS ${target} EXPORT kvqTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  target_link_libraries(${target} PUBLIC ${arg_USES})
endfunction()
