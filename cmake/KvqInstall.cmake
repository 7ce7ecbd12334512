# What `cmake --install` adds to the stages and the command: the demo model, and the package that
# find_package(kvq) reads.
include(CMakePackageConfigHelpers)

install(DIRECTORY models/demo-llama DESTINATION ${CMAKE_INSTALL_DATADIR}/kvq/models)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kvq)
configure_package_config_file(cmake/kvqConfig.cmake.in ${PROJECT_BINARY_DIR}/kvqConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvqConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kvqConfig.cmake ${PROJECT_BINARY_DIR}/kvqConfigVersion.cmake
              cmake/KvqSystemLibrary.cmake
        DESTINATION ${package_dir})
install(EXPORT kvqTargets NAMESPACE kvq:: DESTINATION ${package_dir})
