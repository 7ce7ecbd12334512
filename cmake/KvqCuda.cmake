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
