# kvq_embed(TARGET SOURCE NAME FILE ...): writes a source SOURCE that defines
# `extern const char* const NAME` in namespace kvq as the text of FILE, for every pair, and adds it to
# TARGET. Configures again when a file changes.
function(kvq_embed target source)
  set(definitions "")
  set(pairs ${ARGN})
  while(pairs)
    list(POP_FRONT pairs name file)
    file(READ ${CMAKE_CURRENT_SOURCE_DIR}/${file} text)
    string(APPEND definitions
           "extern const char* const ${name};\nconst char* const ${name} = R\"embedded(${text})embedded\";\n")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
  endwhile()
  set(output ${CMAKE_CURRENT_BINARY_DIR}/${source})
  file(GENERATE OUTPUT ${output} CONTENT "namespace kvq {\n${definitions}}  // namespace kvq\n")
  target_sources(${target} PRIVATE ${output})
endfunction()
