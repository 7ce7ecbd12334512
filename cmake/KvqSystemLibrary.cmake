# kvq_system_library(NAME HEADER): a library without a CMake package to use, as the imported target
# system::NAME. Used by the build and by the installed package.
function(kvq_system_library name header)
  if(TARGET system::${name})
    return()
  endif()
  find_library(KVQ_LIBRARY_${name} ${name} REQUIRED)
  find_path(KVQ_INCLUDE_DIR_${name} ${header} REQUIRED)
  mark_as_advanced(KVQ_LIBRARY_${name} KVQ_INCLUDE_DIR_${name})
  add_library(system::${name} UNKNOWN IMPORTED GLOBAL)
  set_target_properties(system::${name} PROPERTIES
    IMPORTED_LOCATION ${KVQ_LIBRARY_${name}}
    INTERFACE_INCLUDE_DIRECTORIES ${KVQ_INCLUDE_DIR_${name}})
endfunction()
