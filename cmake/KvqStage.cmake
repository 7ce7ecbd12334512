# kvq_stage(NAME HEADERS files... SOURCES files... USES stages... LIBRARIES targets...
#           TESTS files... TEST_LIBRARIES targets...)
#
# One stage of the chain: a static library kvq_NAME (alias kvq::NAME) and one test program
# kvq_NAME_test. HEADERS are its interface, the ones that are installed. USES names the stages to its
# left, LIBRARIES what its headers need from outside, PRIVATE_LIBRARIES what only its sources need.
function(kvq_compile_options target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Werror=return-type)
  if(KVQ_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${KVQ_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${KVQ_SANITIZE})
  endif()
endfunction()

# kvq_isa_sources(VARIABLE ISA files...): appends files to the list VARIABLE and has them compiled for
# one instruction set of kvq/base/cpu.h. Does nothing where the processor family lacks it.
function(kvq_isa_sources variable isa)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    return()
  endif()
  set(avx2 -mavx2 -mfma -mf16c)
  # GCC 12 finds the undefined operands of its own intrinsics uninitialized.
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vnni
             -mprefer-vector-width=512 -Wno-uninitialized
             -Wno-maybe-uninitialized)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${${isa}}")
  set(${variable} ${${variable}} ${ARGN} PARENT_SCOPE)
endfunction()

function(kvq_test target)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES" ${ARGN})
  add_executable(${target} ${ARG_SOURCES})
  kvq_compile_options(${target})
  target_link_libraries(${target} PRIVATE ${ARG_LIBRARIES} GTest::gtest GTest::gtest_main)
  target_compile_definitions(${target} PRIVATE KVQ_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  include(GoogleTest)
  gtest_discover_tests(${target} TEST_PREFIX ${target}. DISCOVERY_TIMEOUT 60)
endfunction()

function(kvq_stage name)
  cmake_parse_arguments(ARG "" "" "HEADERS;SOURCES;USES;LIBRARIES;PRIVATE_LIBRARIES;TESTS;TEST_LIBRARIES" ${ARGN})
  set(target kvq_${name})
  add_library(${target} STATIC ${ARG_SOURCES})
  add_library(kvq::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON)
  kvq_compile_options(${target})
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                              $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  list(TRANSFORM ARG_USES PREPEND kvq::)
  target_link_libraries(${target} PUBLIC ${ARG_USES} ${ARG_LIBRARIES} PRIVATE ${ARG_PRIVATE_LIBRARIES})
  install(TARGETS ${target} EXPORT kvqTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(FILES ${ARG_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvq/${name})
  if(KVQ_BUILD_TESTS AND ARG_TESTS)
    kvq_test(${target}_test SOURCES ${ARG_TESTS} LIBRARIES ${target} ${ARG_TEST_LIBRARIES})
  endif()
endfunction()
